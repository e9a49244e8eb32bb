"""Studies: many pretraining runs that answer one question, declared in `configs/studies/*.yaml`.

A study has seeds, each with a demo world of its own; rows, which are recipes; tries, by which each
method's settings are chosen in a world that no reported number is of; and stages, the order of its
runs. Everything it makes is in one workspace, and each piece of work can be done again from there:

    declaration.py   what a study is
    runs.py          its runs, where each is kept, how far it is, what it costs
    engine.py        doing them side by side, again and again until all are done
    checkpoints.py   scores of a run's checkpoints: the curve against passes, and a try's score
    tuning.py        the best try of each method, written into the recipes
    collecting.py    what a workspace holds, as tables to be committed
    best_pass.py     scores of each row at its own best pass
    words.py         what the tests say, in sentences
    figure.py        the figure made from these tables
    reporting.py     the report, from these tables and the records
"""
