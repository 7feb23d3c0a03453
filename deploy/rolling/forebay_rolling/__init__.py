"""
Replaces the instances of a Forebay installation one by one, and goes back by itself when the new ones fail.

Runs on a bare host: Python 3.11 and its standard library, nothing of Forebay's own. `rolling.py`
decides and knows no process; `processes.py` and `compose.py` do what it says.
"""
