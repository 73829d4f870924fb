package stage

// Values are those that Keelson's chart was installed with, for an upgrade that changes some. They are the caller's own.
func (s *Stage) Values() map[string]any { return s.values() }
