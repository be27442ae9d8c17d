"""Tables, figures and pages made from results; the only place that imports matplotlib."""
