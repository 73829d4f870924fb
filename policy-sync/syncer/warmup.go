package syncer

import "time"

// A replica that has just started remembers nothing: which pods it would have attested, and with which images, it does not
// know, and it has no answer about any image yet. The labels that pods bear say what the replica before decided. So for
// Options.WarmUp after the start, a pod that bears them and of which nothing is proved otherwise counts as attested until
// now, and keeps what it has as every such pod does while something is not known (trustgraph.Pod.Retained).

// inheritUntil is until when labels of pods that this replica does not remember are another replica's.
func (s *Syncer) inheritUntil(now time.Time) time.Time {
	if s.began.IsZero() {
		s.began = now
	}
	return s.began.Add(s.o.WarmUp)
}

// earlier is the earlier one of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
