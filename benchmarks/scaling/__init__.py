"""How a fleet of executors on ECS Fargate follows its load: a simulation, in pure Python, the same every time."""
