package verdict

import (
	"net/http"
	"sync/atomic"
	"time"
)

// apiClock is the Kubernetes API's clock, from the Date of its answers (RFC 9110, section 6.6.1, whole seconds) and the
// monotonic time that passed since. Every SPIRE server and policy-sync talk to that API, so it is the clock they share.
type apiClock struct{ heard atomic.Pointer[heard] }

type heard struct{ date, at time.Time }

// listen has the clock hear what a transport is answered.
func (c *apiClock) listen(next http.RoundTripper) http.RoundTripper { return &listener{c, next} }

type listener struct {
	clock *apiClock
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := l.next.RoundTrip(r)
	if err == nil {
		if date, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
			l.clock.heard.Store(&heard{date, time.Now()})
		}
	}
	return answer, err
}

// now is the API's time; false until it was heard.
func (c *apiClock) now() (time.Time, bool) {
	h := c.heard.Load()
	if h == nil {
		return time.Time{}, false
	}
	return h.date.Add(time.Since(h.at)), true
}

// Now is the Kubernetes API's time as of its last answer, carried on by the monotonic clock; false until it answered.
func (s *Store) Now() (time.Time, bool) { return s.clock.now() }
