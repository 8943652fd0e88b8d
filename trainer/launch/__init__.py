"""Training on machines of Google Cloud, which come for a run and go when it is at its end."""
