"""Records in the formats of others: Parquet, Arrow, CSV, JSON lines, MCAP. `exporter` decides what goes where."""
