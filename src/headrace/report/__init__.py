"""Pictures and tables of what was planned and what happened."""
