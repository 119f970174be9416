"""The routes of the control and query plane."""
