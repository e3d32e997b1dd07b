"""Training: the loop ``for report in fit(...)``, tasks and losses, optimisers, schedules and recipes."""
