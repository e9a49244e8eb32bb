"""Build the sprite atlas of the demo world from the emoji sets on npm (developers only).

    mkdir art && cd art
    npm install @iconify-json/{noto@1.2.9,noto-v1@1.2.5,twemoji@1.2.5,fluent-emoji@1.2.7} \
        @iconify-json/{fluent-emoji-flat@1.2.6,fxemoji@1.2.2,emojione@1.2.3}
    python scripts/build_demo_atlas.py art/node_modules --preview atlas.png

Writes `maskclip_bench/data/demo/art/`: `atlas.webp` (all sprites, lossless), `atlas.json` (where
each sprite lies, and the words of each class) and `SHA256SUMS`, which the package checks on load.
The words start from the short names and keywords of CLDR as emojibase-data 17.0.0 lists them, and
are edited so that they fit into an English sentence. Needs `resvg-py`; users of the package do not.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

ART = Path(__file__).resolve().parent.parent / "maskclip_bench" / "data" / "demo" / "art"

SPRITE_SIZE = 80
"""Longest side of a trimmed sprite in the atlas, in pixels."""

COLOUR_LEVELS = 32
ALPHA_LEVELS = 9
"""Levels a channel is rounded to: halves the lossless file, and cannot be seen in a scene."""

ATLAS_WIDTH = 2048

VENDORS = {  # our name -> npm package, its version, held out of every training split
    "noto": ("noto", "1.2.9", False),
    "noto-v1": ("noto-v1", "1.2.5", False),
    "twemoji": ("twemoji", "1.2.5", False),
    "fluent": ("fluent-emoji", "1.2.7", False),
    "fluent-flat": ("fluent-emoji-flat", "1.2.6", False),
    "fxemoji": ("fxemoji", "1.2.2", False),
    "emojione": ("emojione", "1.2.3", True),
}

# name -> singular, plural
GROUPS = {
    "mammal": ("a mammal", "mammals"),
    "bird": ("a bird", "birds"),
    "sea animal": ("a sea animal", "sea animals"),
    "reptile": ("a reptile", "reptiles"),
    "insect": ("an insect", "insects"),
    "fruit": ("a fruit", "fruits"),
    "vegetable": ("a vegetable", "vegetables"),
    "fast food": ("a fast food dish", "fast food dishes"),
    "sweet": ("a sweet", "sweets"),
    "drink": ("a drink", "drinks"),
    "land vehicle": ("a land vehicle", "land vehicles"),
    "aircraft": ("a flying machine", "flying machines"),
    "building": ("a building", "buildings"),
    "musical instrument": ("a musical instrument", "musical instruments"),
    "ball": ("a ball", "balls"),
    "garment": ("a garment", "garments"),
    "footwear": ("a piece of footwear", "pieces of footwear"),
    "accessory": ("an accessory", "accessories"),
    "tool": ("a tool", "tools"),
    "device": ("a device", "devices"),
    "plant": ("a plant", "plants"),
}

# icon | icon in fxemoji if it differs | name | singular | plural | keywords
CLASSES = {
    "mammal": """
        elephant | | elephant | an elephant | elephants | trunk, tusks, savanna
        panda | pandaface | panda | a panda | pandas | bamboo, bear
        rabbit-face | bunny | rabbit | a rabbit | rabbits | bunny, pet
        """,
    "bird": """
        rooster | | rooster | a rooster | roosters | farm, feathers, morning
        penguin | | penguin | a penguin | penguins | antarctica, flippers
        baby-chick | | chick | a chick | chicks | baby, chicken
        """,
    "sea animal": """
        octopus | | octopus | an octopus | octopuses | tentacles, ocean
        whale | | whale | a whale | whales | ocean, giant
        tropical-fish | | tropical fish | a tropical fish | tropical fish | fins, aquarium
        """,
    "reptile": """
        turtle | | turtle | a turtle | turtles | tortoise, shell
        crocodile | | crocodile | a crocodile | crocodiles | alligator, zoo
        snake | | snake | a snake | snakes | serpent, scales
        """,
    "insect": """
        honeybee | | bee | a bee | bees | honey, bumblebee
        lady-beetle | | ladybug | a ladybug | ladybugs | beetle, garden, dots
        bug | | caterpillar | a caterpillar | caterpillars | crawling, leaves
        """,
    "fruit": """
        banana | | banana | a banana | bananas | potassium, peel
        strawberry | | strawberry | a strawberry | strawberries | berry, jam
        grapes | | grapes | a bunch of grapes | bunches of grapes | vineyard, raisins
        """,
    "vegetable": """
        eggplant | aubergine | eggplant | an eggplant | eggplants | aubergine, purple
        ear-of-corn | earofmaize | ear of corn | an ear of corn | ears of corn | maize, crops
        hot-pepper | chilipepper | hot pepper | a hot pepper | hot peppers | chili, spicy
        """,
    "fast food": """
        hamburger | | hamburger | a hamburger | hamburgers | burger, bun
        french-fries | | french fries | a box of french fries | boxes of french fries \
            | potatoes, salt
        pizza | sliceofpizza | slice of pizza | a slice of pizza | slices of pizza \
            | cheese, pepperoni
        """,
    "sweet": """
        doughnut | | doughnut | a doughnut | doughnuts | icing, breakfast
        lollipop | | lollipop | a lollipop | lollipops | candy, stick
        soft-ice-cream | | ice cream cone | an ice cream cone | ice cream cones | dessert, vanilla
        """,
    "drink": """
        beer-mug | | mug of beer | a mug of beer | mugs of beer | ale, foam
        wine-glass | | glass of wine | a glass of wine | glasses of wine | bar, restaurant
        hot-beverage | | cup of coffee | a cup of coffee | cups of coffee | cafe, caffeine
        """,
    "land vehicle": """
        automobile | | car | a car | cars | driving, automobile
        tractor | | tractor | a tractor | tractors | farmer, field
        bicycle | | bicycle | a bicycle | bicycles | bike, cycling
        """,
    "aircraft": """
        airplane | | airplane | an airplane | airplanes | jet, travel
        helicopter | | helicopter | a helicopter | helicopters | rotor, pilot
        rocket | | rocket | a rocket | rockets | space, launch
        """,
    "building": """
        house-with-garden | housewithgarden | house | a house | houses | home, family
        church | | church | a church | churches | chapel, cross
        castle | europeancastle | castle | a castle | castles | towers, knight
        """,
    "musical instrument": """
        guitar | | guitar | a guitar | guitars | rock, concert
        violin | | violin | a violin | violins | orchestra, bow
        trumpet | | trumpet | a trumpet | trumpets | brass, jazz
        """,
    "ball": """
        soccer-ball | | soccer ball | a soccer ball | soccer balls | goal, kick
        american-football | | american football | an american football | american footballs \
            | touchdown, quarterback
        baseball | | baseball | a baseball | baseballs | bat, pitcher
        """,
    "garment": """
        jeans | | pair of jeans | a pair of jeans | pairs of jeans | denim, trousers
        dress | | dress | a dress | dresses | fancy, party
        t-shirt | mansshirt | t-shirt | a t-shirt | t-shirts | casual, sleeves
        """,
    "footwear": """
        high-heeled-shoe | heels | high-heeled shoe | a high-heeled shoe | high-heeled shoes \
            | stiletto, fashion
        womans-boot | boot | boot | a boot | boots | leather, winter
        running-shoe | mensrunner | running shoe | a running shoe | running shoes \
            | sneaker, athletic
        """,
    "accessory": """
        crown | | crown | a crown | crowns | king, queen
        top-hat | | top hat | a top hat | top hats | magic, formal
        handbag | | handbag | a handbag | handbags | purse, shopping
        """,
    "tool": """
        hammer | | hammer | a hammer | hammers | nails, repairs
        wrench | | wrench | a wrench | wrenches | spanner, mechanic
        scissors | blackscissors | pair of scissors | a pair of scissors | pairs of scissors \
            | cutting, paper
        """,
    "device": """
        television | | television | a television | televisions | tv, channel
        camera | | camera | a camera | cameras | lens, selfie
        telephone | blacktelephone | telephone | a telephone | telephones | call, number
        """,
    "plant": """
        sunflower | | sunflower | a sunflower | sunflowers | blossom, yellow
        cactus | | cactus | a cactus | cacti | desert, thorns
        palm-tree | | palm tree | a palm tree | palm trees | tropical, coconuts
        """,
}

FLIES = {"airplane": 0.7, "helicopter": 0.7, "rocket": 0.5, "bee": 0.5}
"""How often a class is seen in the sky where there is one."""


def icon_svg(icons: dict[str, Any], name: str) -> str:
    """The SVG of one icon of an Iconify set."""
    while name in icons.get("aliases", {}):
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{box}">{icon["body"]}</svg>'
    )


def render_sprite(svg: str) -> Image.Image:
    """Draw an SVG, trim it to what is visible, and scale it to `SPRITE_SIZE`."""
    # At resvg's default resolution, drawings sized in pt or mm fail.
    data = resvg_py.svg_to_bytes(svg_string=svg, width=4 * SPRITE_SIZE, dpi=96)
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    rows, columns = np.nonzero(np.asarray(image)[..., 3] > 24)
    image = image.crop(
        (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    )
    scale = SPRITE_SIZE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    exact = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).astype(np.float64)
    sprite = np.empty(exact.shape, np.uint8)
    for channels, levels in ((slice(0, 3), COLOUR_LEVELS), (slice(3, 4), ALPHA_LEVELS)):
        steps = np.round(exact[..., channels] * (levels - 1) / 255)
        sprite[..., channels] = np.round(steps * 255 / (levels - 1))
    sprite[sprite[..., 3] == 0] = 0
    fill = float((sprite[..., 3] > 127).mean())
    if fill > 0.97:
        raise SystemExit(f"A card-like sprite ({fill:.0%} of its box is filled): choose another.")
    return Image.fromarray(sprite)


def read_classes() -> list[dict[str, Any]]:
    """The table above as records, in class order."""
    classes = []
    for group_index, (group, table) in enumerate(CLASSES.items(), start=1):
        lines = [line for line in table.replace("\\\n", "").splitlines() if line.strip()]
        for member, line in enumerate(lines, start=1):
            icon, fx, name, singular, plural, keywords = (p.strip() for p in line.split("|"))
            classes.append(
                {
                    "id": name.replace(" ", "-"),
                    # Like a WordNet id; no offset of WordNet begins with 9.
                    "wnid": f"n9{group_index:02d}{member:02d}000",
                    "name": name,
                    "singular": singular,
                    "plural": plural,
                    "group": group,
                    "keywords": [word.strip() for word in keywords.split(",")],
                    "flies": FLIES.get(name, 0.0),
                    "icon": icon,
                    "fxemoji_icon": fx or icon.replace("-", ""),
                }
            )
    return classes


def pack(sprites: dict[str, Image.Image]) -> tuple[Image.Image, dict[str, list[int]]]:
    """Lay sprites on shelves, tall ones first; returns the atlas and name -> [x, y, w, h]."""
    places: dict[str, list[int]] = {}
    x = y = shelf = 0
    for name, sprite in sorted(sprites.items(), key=lambda item: (-item[1].height, item[0])):
        if x + sprite.width > ATLAS_WIDTH:
            x, y, shelf = 0, y + shelf, 0
        places[name] = [x, y, sprite.width, sprite.height]
        x, shelf = x + sprite.width, max(shelf, sprite.height)
    atlas = Image.new("RGBA", (ATLAS_WIDTH, y + shelf))
    for name, (left, top, _, _) in places.items():
        atlas.paste(sprites[name], (left, top))
    return atlas, dict(sorted(places.items()))


def preview(classes: list[dict[str, Any]], sprites: dict[str, Image.Image]) -> Image.Image:
    """All sprites in rows of classes (three columns of rows), on a plain ground, to look at."""
    cell, per_column = 52, -(-len(classes) // 3)
    width = len(VENDORS) * cell + 12
    sheet = Image.new("RGB", (3 * width, per_column * cell), (140, 170, 150))
    for index, record in enumerate(classes):
        left, top = (index // per_column) * width, (index % per_column) * cell
        for column, vendor in enumerate(VENDORS):
            sprite = sprites[f"{record['id']}--{vendor}"].copy()
            sprite.thumbnail((cell - 4, cell - 4))
            sheet.paste(sprite, (left + column * cell + 2, top + 2), sprite)
    return sheet


def main() -> None:
    """Render, pack, and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("node_modules", type=Path, help="where npm installed @iconify-json")
    parser.add_argument("--preview", type=Path, help="also write a PNG of all sprites")
    arguments = parser.parse_args()

    classes = read_classes()
    sprites: dict[str, Image.Image] = {}
    for vendor, (package, _, _) in VENDORS.items():
        folder = arguments.node_modules / "@iconify-json" / package
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        for record in classes:
            icon = record["fxemoji_icon" if vendor == "fxemoji" else "icon"]
            sprites[f"{record['id']}--{vendor}"] = render_sprite(icon_svg(icons, icon))

    atlas, places = pack(sprites)
    index = {
        "format": 1,
        "vendors": [
            {
                "name": name,
                "package": f"@iconify-json/{package}",
                "version": version,
                "held_out": held,
            }
            for name, (package, version, held) in VENDORS.items()
        ],
        "groups": [
            {"name": name, "singular": singular, "plural": plural}
            for name, (singular, plural) in GROUPS.items()
        ],
        "classes": [
            {key: value for key, value in record.items() if "icon" not in key} for record in classes
        ],
        "sprites": places,
    }
    ART.mkdir(parents=True, exist_ok=True)
    atlas.save(ART / "atlas.webp", lossless=True, quality=100, method=6)
    text = json.dumps(index, indent=1, ensure_ascii=False)
    (ART / "atlas.json").write_text(text + "\n", encoding="utf-8")
    sums = [
        f"{hashlib.sha256((ART / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("atlas.json", "atlas.webp")
    ]
    (ART / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    if arguments.preview:
        preview(classes, sprites).save(arguments.preview)
    size = (ART / "atlas.webp").stat().st_size
    print(
        f"{len(classes)} classes, {len(sprites)} sprites, atlas {atlas.size}, {size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
