package serverplugin

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/audit"
)

func TestThreat24_WhatProvedNothingHasBoundedLines(t *testing.T) {
	var a allowance
	now := 5 * time.Hour
	for i := range maxUnproved {
		if omitted, write := a.take(false, now); !write || omitted > 0 {
			t.Fatalf("attempt %d: written %t, %d omitted", i, write, omitted)
		}
	}
	flood := func(n int) (written int, told uint64) {
		for range n {
			if omitted, write := a.take(false, now); write {
				written++
				told += omitted
			}
		}
		return written, told
	}
	if n, _ := flood(1000); n > 0 {
		t.Errorf("%d lines beyond the bound", n)
	}
	if omitted, write := a.take(true, now); !write || omitted != 1000 {
		t.Errorf("a proved attempt: written %t, %d omitted before it; want it written, and 1000", write, omitted)
	}
	if omitted, write := a.take(true, now); !write || omitted > 0 {
		t.Errorf("the next one: written %t, and tells of %d again", write, omitted)
	}
	for range 10 { // a minute of a flood
		now += unprovedPace
		if n, told := flood(50); n != 1 || told > 49 {
			t.Errorf("%d lines in %s, which tell of %d", n, unprovedPace, told)
		}
	}
	now += 1000 * time.Hour
	if n, _ := flood(1000); n != maxUnproved {
		t.Errorf("%d lines after a long peace, want %d", n, maxUnproved)
	}
	a.omit(3, false) // of a line that could not be written
	if n := a.rest(); n != 1000-maxUnproved+3 {
		t.Errorf("%d attempts are told of at the end", n)
	}
}

func TestThreat24_AFloodOfStrangersIsToldAndTheLogIsWhole(t *testing.T) {
	s := newSite(t, time.Now)
	record := func(o audit.Outcome, proved bool) {
		t.Helper()
		if err := s.plugin.record(audit.Entry{Time: time.Now(), Outcome: o}, proved); err != nil {
			t.Fatal(err)
		}
	}
	const strangers, known = 3000, 150
	for i := range strangers {
		record(audit.Unproved, false)
		if i%(strangers/known) == 0 {
			record(audit.Trusted, true)
		}
	}
	if err := s.plugin.Close(); err != nil {
		t.Fatal(err)
	}
	if sum, err := audit.VerifyLog(s.path("audit.jsonl"), ""); err != nil || sum.Head.Seq > maxUnproved+known+3 {
		t.Errorf("%d lines, %v", sum.Head.Seq, err)
	}
	data, err := os.ReadFile(s.path("audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	count := map[audit.Outcome]uint64{}
	var last audit.Entry
	for line := range strings.Lines(string(data)) {
		last = audit.Entry{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
		count[last.Outcome]++
		count[audit.Omitted] += last.Omitted
	}
	if last.Outcome != audit.Omitted || last.Omitted == 0 {
		t.Errorf("the last line is %+v, want one that tells of the rest", last)
	}
	count[audit.Omitted]-- // that line itself
	if count[audit.Trusted] != known || count[audit.Unproved]+count[audit.Omitted] != strangers {
		t.Errorf("%v; want %d of machines and %d of strangers, written or told of", count, known, strangers)
	}
}

func TestThreat24_WhatALostLineToldOfIsToldAgain(t *testing.T) {
	s := newSite(t, time.Now)
	s.plugin.unproved.omit(7, false)
	for _, proved := range []bool{true, false} {
		e := audit.Entry{Time: time.Now(), Outcome: audit.Unproved, Reference: strings.Repeat("x", audit.MaxLine)}
		if err := s.plugin.record(e, proved); err == nil {
			t.Fatal("a line beyond every limit was written")
		}
	}
	if n := s.plugin.unproved.rest(); n != 8 {
		t.Errorf("%d attempts are left to tell of, want 7 and the one that proved nothing", n)
	}
}
