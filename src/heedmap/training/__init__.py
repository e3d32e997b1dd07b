"""Training: ``for report in fit(...)``, its schedules, and what a checkpoint must hold."""
