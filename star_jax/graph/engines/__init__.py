"""Where neighbourhoods come from: one module per engine, all behind one protocol."""
