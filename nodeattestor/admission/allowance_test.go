package admission

import (
	"errors"
	"sync"
	"testing"
	"time"
)

// spend has a line written, and reports whether it was, and how many omitted attempts it told of.
func (a *Allowance) spend(t *testing.T, proved bool, now time.Duration) (omitted uint64, written bool) {
	t.Helper()
	if err := a.Spend(proved, now, func(n uint64) error { omitted, written = n, true; return nil }); err != nil {
		t.Error(err)
	}
	return omitted, written
}

func TestThreat24_WhatProvedNothingHasBoundedLines(t *testing.T) {
	var a Allowance
	now := 5 * time.Hour
	for i := range MaxUnproved {
		if omitted, written := a.spend(t, false, now); !written || omitted > 0 {
			t.Fatalf("attempt %d: written %t, %d omitted", i, written, omitted)
		}
	}
	flood := func(n int) (lines int, told uint64) {
		for range n {
			if omitted, written := a.spend(t, false, now); written {
				lines++
				told += omitted
			}
		}
		return lines, told
	}
	if n, _ := flood(1000); n > 0 {
		t.Errorf("%d lines beyond the bound", n)
	}
	if omitted, written := a.spend(t, true, now); !written || omitted != 1000 {
		t.Errorf("a proved attempt: written %t, %d omitted before it; want it written, and 1000", written, omitted)
	}
	if omitted, written := a.spend(t, true, now); !written || omitted > 0 {
		t.Errorf("the next one: written %t, and tells of %d again", written, omitted)
	}
	for range 10 { // a minute of a flood
		now += UnprovedPace
		if n, told := flood(50); n != 1 || told > 49 {
			t.Errorf("%d lines in %s, which tell of %d", n, UnprovedPace, told)
		}
	}
	now += 1000 * time.Hour
	if n, _ := flood(1000); n != MaxUnproved {
		t.Errorf("%d lines after a long peace, want %d", n, MaxUnproved)
	}
	if omitted, written := a.spend(t, true, now); !written || omitted != 1000-MaxUnproved {
		t.Errorf("%d attempts are told of at the end", omitted)
	}
}

func TestThreat24_WhatALostLineToldOfIsToldAgain(t *testing.T) {
	var a Allowance
	full := errors.New("no space left on device")
	for range MaxUnproved + 7 {
		a.spend(t, false, 0)
	}
	lost := func(proved bool, now time.Duration, want uint64) {
		t.Helper()
		if err := a.Spend(proved, now, func(n uint64) error {
			if n != want {
				t.Errorf("the line tells of %d, want %d", n, want)
			}
			return full
		}); !errors.Is(err, full) {
			t.Errorf("%v, want the error of the one who writes", err)
		}
	}
	lost(true, 0, 7)
	lost(false, UnprovedPace, 7) // it has a line again, and loses it
	if omitted, _ := a.spend(t, true, UnprovedPace); omitted != 8 {
		t.Errorf("%d attempts are left to tell of, want 7 and the one that proved nothing", omitted)
	}
}

func TestThreat24_EveryOneOfManyAtOnceIsWrittenOrToldOf(t *testing.T) {
	var a Allowance
	var mu sync.Mutex
	var counted uint64
	count := func(n uint64) error {
		mu.Lock()
		defer mu.Unlock()
		counted += n + 1
		return nil
	}
	const each, goroutines = 500, 8
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range each {
				if err := a.Spend(false, 0, count); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := a.Spend(true, 0, count); err != nil || counted != each*goroutines+1 {
		t.Errorf("%d of %d attempts are written or told of, %v", counted-1, each*goroutines, err)
	}
}
