package image

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// knowledge is what is known about one image, and until when. It is not changed once it is in the cache.
type knowledge struct {
	bound      bound
	complete   bool  // every document that could say more was read
	err        error // why nothing is bound
	boundUntil time.Time

	verdicts map[string]known // by verifier
	renew    time.Time        // from here on, ask again
	tries    int              // in a row that left something open
}

// known is one verifier's verdict.
type known struct {
	verdict
	unheard bool      // a place could not be asked, so a refusal proves nothing
	expires time.Time // of an acceptance
}

func (k *knowledge) clone() *knowledge {
	out := *k
	out.verdicts = maps.Clone(k.verdicts)
	return &out
}

// stale tells whether an acceptance has ended: then the image is asked about, whatever the time of the next try.
func (k *knowledge) stale(now time.Time) bool {
	for _, v := range k.verdicts {
		if v.refusal == nil && !now.Before(v.expires) {
			return true
		}
	}
	return false
}

// note keeps the verdicts of one look. Where every place was heard, a signature that is not there is gone, and that counts at
// once. Otherwise an acceptance lasts its time.
func (k *knowledge) note(c Config, verdicts map[string]verdict, problems []error, now time.Time) {
	before := k.verdicts
	k.verdicts = make(map[string]known, len(verdicts))
	unheard := len(problems) > 0
	open, accepted := false, false
	for name, v := range verdicts {
		old, had := before[name]
		switch {
		case v.refusal == nil:
			k.verdicts[name] = known{verdict: v, expires: now.Add(c.TTL)}
			accepted = true
			continue
		case unheard && had && old.refusal == nil && now.Before(old.expires):
			k.verdicts[name] = old
		default:
			v.refusal = errors.Join(append([]error{v.refusal}, problems...)...)
			k.verdicts[name] = known{verdict: v, unheard: unheard || k.bound.unheard()}
		}
		open = true
	}
	switch {
	case !open && k.complete:
		k.tries, k.renew = 0, now.Add(c.TTL/2)
	case accepted && !unheard && k.tries >= quickTries:
		k.renew = now.Add(c.TTL / 2)
	default:
		k.retry(c, now)
	}
}

// quickTries are the tries that come soon after the first look at an image that one verifier accepts and another does not: its
// signatures are made together.
const quickTries = 2

// maxRetry bounds the time between tries about an image that no verifier accepts.
const maxRetry = 10 * time.Minute

// retry sets the time of the next try, twice as far away as the last one was.
func (k *knowledge) retry(c Config, now time.Time) {
	delay := c.FailureTTL << min(k.tries, 16)
	if delay <= 0 || delay > maxRetry {
		delay = max(maxRetry, c.FailureTTL)
	}
	k.tries++
	k.renew = now.Add(min(delay, c.TTL/2))
}

// answer says what holds now.
func (k *knowledge) answer(s *scope, now time.Time) (Result, error) {
	if k.err != nil {
		return Result{}, k.err
	}
	result := k.bound.result()
	for _, v := range s.counts {
		d := k.verdicts[v.Name()]
		if d.refusal == nil && now.Before(d.expires) {
			result.SignedBy = append(result.SignedBy, v.Name())
			result.Signatures = append(result.Signatures, d.signatures(v.Name())...)
			continue
		}
		if d.refusal == nil {
			d.refusal, d.unheard = errors.New("its acceptance has expired"), true
		}
		result.Failures = append(result.Failures, Failure{Verifier: v.Name(), Reason: d.refusal, Unknown: d.unheard})
	}
	s.refuse(&result)
	slices.Sort(result.SignedBy)
	if len(result.SignedBy) == 0 {
		// Nobody vouches for the index, so it matters that its entries cannot be told or read.
		if err := k.bound.doubt(); err != nil {
			return Result{}, err
		}
	}
	return result, nil
}

// signatures names what was counted, without doubles.
func (v verdict) signatures(verifier string) []Signature {
	if len(v.by) == 0 {
		return []Signature{{Verifier: verifier, Format: "digest-list"}}
	}
	var out []Signature
	for _, w := range v.by {
		if s := (Signature{Verifier: verifier, Format: w.format, Subject: w.signer}); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// cache keeps what is known of images. It never holds more than limit of them, and drops the one whose next try is first.
type cache struct {
	mu      sync.Mutex
	limit   int
	entries map[string]*knowledge
}

func newCache(limit int) *cache { return &cache{limit: limit, entries: map[string]*knowledge{}} }

func (c *cache) get(key string, _ time.Time) (*knowledge, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	return e, ok
}

func (c *cache) put(key string, e *knowledge, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; !ok && len(c.entries) >= c.limit {
		c.evict(now)
	}
	c.entries[key] = e
}

// evict drops what was not asked about for a day, or the image whose next try was due first.
func (c *cache) evict(now time.Time) {
	var first string
	for key, e := range c.entries {
		if now.Sub(e.renew) > 24*time.Hour {
			delete(c.entries, key)
			continue
		}
		if have, ok := c.entries[first]; !ok || e.renew.Before(have.renew) {
			first = key
		}
	}
	if len(c.entries) >= c.limit {
		delete(c.entries, first)
	}
}
