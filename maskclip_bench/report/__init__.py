"""The report: one folder with a page of tables, comparisons, curves and pictures.

    maskclip-bench report --suite all -o report

| module | makes |
| --- | --- |
| `build` | the folder, from records; `build.build(...)` is the whole of it |
| `selection` | which rows and columns, their names and colours |
| `tables`, `comparisons`, `runs`, `cells` | the page's parts as plain data |
| `drawing`, `charts`, `cell_charts` | charts: one drawing, as SVG for pages and as PNG |
| `images` | small pictures of the data's images |
| `page` | HTML from the parts (`templates/`) |
| `seeing` | what a model sees: the only part that needs torch |

The page opens from disk: no request leaves the folder, and nothing in it is fetched by address.
"""
