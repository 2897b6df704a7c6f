//! HTTP for operators: health and metrics. Reads what others publish; never touches an engine.
