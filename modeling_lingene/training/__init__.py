"""Training: the one loop, its phases and schedules, losses, teachers, checkpoints, named runs."""
