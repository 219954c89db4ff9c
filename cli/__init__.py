"""How a person starts the commands: flags, configs, exit statuses, the run's folder."""
