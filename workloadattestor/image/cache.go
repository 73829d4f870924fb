package image

import (
	"sync"
	"time"
)

// cache keeps answers with an expiry. A good answer is served until it expires, and from half its life on it is
// renewed when that works; so an outage that is shorter than half the life is not noticed. It never holds more
// than limit answers.
type cache[V any] struct {
	mu      sync.Mutex
	limit   int
	entries map[string]entry[V]
}

type entry[V any] struct {
	value   V
	err     error
	renew   time.Time // from here on, try to get a new answer
	expires time.Time // from here on, this answer is gone
}

func newCache[V any](limit int) *cache[V] {
	return &cache[V]{limit: limit, entries: map[string]entry[V]{}}
}

// get returns the unexpired answer for key, if there is one.
func (c *cache[V]) get(key string, now time.Time) (entry[V], bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[key]
	if !ok || !now.Before(e.expires) {
		return entry[V]{}, false
	}
	return e, true
}

// putGood keeps value for ttl.
func (c *cache[V]) putGood(key string, value V, now time.Time, ttl time.Duration) {
	c.put(key, entry[V]{value: value, renew: now.Add(ttl / 2), expires: now.Add(ttl)}, now)
}

// putBad keeps a failure for ttl. With keepGood, a good answer that has not expired stays and is not renewed for ttl:
// not being able to ask again is no proof against what was proved.
func (c *cache[V]) putBad(key string, err error, now time.Time, ttl time.Duration, keepGood bool) (entry[V], bool) {
	if e, ok := c.get(key, now); keepGood && ok && e.err == nil {
		e.renew = now.Add(ttl)
		c.put(key, e, now)
		return e, true
	}
	c.put(key, entry[V]{err: err, renew: now.Add(ttl), expires: now.Add(ttl)}, now)
	return entry[V]{}, false
}

func (c *cache[V]) put(key string, e entry[V], now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[key]; !ok && len(c.entries) >= c.limit {
		c.evict(now)
	}
	c.entries[key] = e
}

// evict drops what has expired, or the answer that expires first.
func (c *cache[V]) evict(now time.Time) {
	var first string
	for key, e := range c.entries {
		if !now.Before(e.expires) {
			delete(c.entries, key)
			continue
		}
		if have, ok := c.entries[first]; !ok || e.expires.Before(have.expires) {
			first = key
		}
	}
	if len(c.entries) >= c.limit {
		delete(c.entries, first)
	}
}
