"""Networks that train and are evaluated one by one, each in a compiled program that fuses its layers, on a CPU."""
