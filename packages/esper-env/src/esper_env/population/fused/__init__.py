"""Engine for CPUs that trains and evaluates networks one by one, each in a compiled program that fuses its layers."""
