"""Turn published data sets into the row format, streaming, in constant memory."""
