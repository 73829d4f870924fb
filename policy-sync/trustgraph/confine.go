package trustgraph

import "runtime/debug"

// confines keeps a panic in the judgement of one subject from all others.
type confines struct {
	judging  func(subject string)
	panicked func(subject string, value any, stack []byte)
}

// confine judges one subject ("node fra-1"). When that panics, failed says what becomes of the subject,
// which is closed and named.
func (c confines) confine(subject string, judge func(), failed func(cause any)) {
	defer func() {
		if p := recover(); p != nil {
			if c.panicked != nil {
				c.panicked(subject, p, debug.Stack())
			}
			failed(p)
		}
	}()
	if c.judging != nil {
		c.judging(subject)
	}
	judge()
}

// ownFault ends the sentence that says that a subject could not be judged.
const ownFault = "which is a fault of Keelson's"
