"""What a study is: `configs/studies/*.yaml`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from maskclip_bench.config import Declaration, load_declaration
from maskclip_bench.data.demo import DemoSizes
from maskclip_bench.data_files import declarations, find_declaration

KIND = "configs/studies"
LISTING = "maskclip-bench study list"

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
Settings = dict[str, Any]
"""Overrides of a recipe: {"optimizer.lr": 1e-3}."""


class MetricOf(Declaration):
    """A metric of a task."""

    task: str
    """`protocol/data set`."""
    metric: str
    """Name of the metric in the task's records."""

    @property
    def key(self) -> str:
        """`protocol/data set/metric`."""
        return f"{self.task}/{self.metric}"


class ShownMetric(MetricOf):
    """A metric with what a figure calls it."""

    title: str


class WorldSection(Declaration):
    """The demo world that each seed draws."""

    folder: str = Field(pattern=r"^[a-z0-9_]+$")
    """Its name below a seed's data root; recipes and tasks name their files below it."""
    pairs_of_pass: int = Field(gt=0)
    """Pairs that a run is trained on; what is left of `sizes.pretrain` may be held out."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Fields of `DemoSizes` that differ from the demo's."""

    @model_validator(mode="after")
    def _are_sizes(self) -> WorldSection:
        if unknown := sorted(set(self.sizes) - set(DemoSizes.__dataclass_fields__)):
            raise ValueError(
                f"sizes names {unknown}; choose from {', '.join(DemoSizes.__dataclass_fields__)}"
            )
        if self.pairs_of_pass > self.demo_sizes.pretrain:
            raise ValueError(
                f"pairs_of_pass is {self.pairs_of_pass}, and the world has "
                f"{self.demo_sizes.pretrain} pairs"
            )
        return self

    @property
    def demo_sizes(self) -> DemoSizes:
        """All sizes."""
        return DemoSizes(**self.sizes)


class StageSection(Declaration):
    """Runs that belong together; they are done seed by seed."""

    name: Name
    rows: list[Name] = Field(min_length=1)
    """Which rows, in this order."""
    seeds: list[int] = Field(min_length=1)
    """Which seeds, in this order."""
    suite: str | None = None
    """What is measured of its runs; by default the study's suite. A stage may measure more of runs
    that an earlier one has trained."""
    measure_minutes: Annotated[float, Field(gt=0)] = 2.5
    """How long that takes for one run, on one quiet core."""


class TuningSection(Declaration):
    """How settings are chosen: the same number of tries for every method, in a world of its own."""

    seed: int = Field(ge=0)
    """Of the tries and of their world; none of the study's seeds."""
    held_out: list[str] = Field(default_factory=list)
    """Vendors that the world holds out."""
    first: Name
    """The row whose best try is the base of all others: they inherit its settings."""
    score: list[MetricOf] = Field(min_length=1)
    """A try's score is the mean of these metrics."""
    tries: dict[Name, list[Settings]]
    """For each row its tries, all of one length."""

    @model_validator(mode="after")
    def _equal_tries(self) -> TuningSection:
        if len({len(tries) for tries in self.tries.values()}) > 1:
            counts = ", ".join(f"{row} {len(tries)}" for row, tries in self.tries.items())
            raise ValueError(f"every method gets the same number of tries ({counts})")
        if self.first not in self.tries:
            raise ValueError(f"first is {self.first!r}, which has no tries")
        for row, tries in self.tries.items():
            if any(set(settings) != set(tries[0]) for settings in tries):
                raise ValueError(f"the tries of {row} set different keys; name the same in all")
        return self


class CurveSection(Declaration):
    """What is measured on the checkpoints of every run."""

    show: list[ShownMetric] = Field(min_length=1)
    """Metrics shown against passes."""
    choose_on: list[MetricOf] = Field(default_factory=list)
    """The best pass of a run is that with the largest mean of these; never of a reported split."""


class StudyDeclaration(Declaration):
    """A study."""

    name: str = ""
    """Set from the file, not written in it."""
    title: str
    suite: str
    """What is measured of every run, and the tables it enters."""
    recipes: str
    """Name of a row's recipe; "{row}" is the row's name."""
    backbones: str
    """Name of a row's backbone; "{row}" is the row's name."""
    world: WorldSection
    seeds: dict[int, list[str]]
    """Seed -> vendors that its world holds out."""
    stages: list[StageSection] = Field(min_length=1)
    tuning: TuningSection | None = None
    curve: CurveSection | None = None
    baseline: Name
    """The row that others are compared with."""

    @model_validator(mode="after")
    def _consistent(self) -> StudyDeclaration:
        for key in ("recipes", "backbones"):
            if "{row}" not in getattr(self, key):
                raise ValueError(f'{key} has no "{{row}}" in it')
        wanted = {seed for stage in self.stages for seed in stage.seeds}
        if missing := sorted(wanted - set(self.seeds)):
            raise ValueError(f"stages name seeds {missing}, which are not among the seeds")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages have the same name: {names}")
        if self.tuning is not None and self.tuning.seed in self.seeds:
            raise ValueError(
                f"tuning.seed is {self.tuning.seed}, which is one of the study's seeds; choose "
                "another, so that nothing is tuned on what is reported"
            )
        if self.baseline not in self.rows:
            raise ValueError(f"the baseline {self.baseline!r} is no row of any stage")
        return self

    @property
    def rows(self) -> list[str]:
        """All rows, each once, in the order of the stages."""
        return list(dict.fromkeys(row for stage in self.stages for row in stage.rows))

    @property
    def suites(self) -> list[str]:
        """All suites, each once: the study's own first."""
        of_stages = (stage.suite or self.suite for stage in self.stages)
        return list(dict.fromkeys([self.suite, *of_stages]))

    def stage(self, name: str) -> StageSection | None:
        """A stage by name; None for the tries, which are none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def recipe_of(self, row: str) -> str:
        """Name of a row's recipe."""
        return self.recipes.format(row=row)

    def backbone_of(self, row: str) -> str:
        """Name of a row's backbone."""
        return self.backbones.format(row=row)

    def held_out(self, seed: int) -> list[str]:
        """Vendors that the world of a seed (or that of the tries) holds out."""
        if self.tuning is not None and seed == self.tuning.seed:
            return self.tuning.held_out
        return self.seeds[seed]


def study_names() -> list[str]:
    """All studies."""
    return list(declarations(KIND))


def load_study(name: str) -> StudyDeclaration:
    """Read a study by name or path.

    Raises:
        UnknownNameError: There is none of that name.
        ConfigError: Its file is wrong.
    """
    path = find_declaration(KIND, name, singular="study", listing=LISTING)
    return load_declaration(path, StudyDeclaration).model_copy(update={"name": path.stem})
