package ima

// Recalled tells tests whether a book knew what the entry hashes to.
func (v *View) Recalled() bool { return v.recalled != nil }
