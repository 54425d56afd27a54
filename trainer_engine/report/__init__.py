"""A picture of a run, drawn from its journal by a process of its own: every validation image in one grid, and its curves.

Standard library, pydantic and Pillow; matplotlib only where curves are drawn, torch never.
"""
