"""What goes over a guest's network card: the layouts of frames and packets, without any I/O."""
