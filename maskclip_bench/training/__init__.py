"""What every training loop here needs: optimizer, schedule, checkpoints, logs, interruption."""
