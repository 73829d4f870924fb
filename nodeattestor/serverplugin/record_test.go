package serverplugin

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/admission"
	"github.com/keelson-project/keelson/nodeattestor/audit"
)

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
	if sum, err := audit.VerifyLog(s.path("audit.jsonl"), ""); err != nil || sum.Head.Seq > admission.MaxUnproved+known+3 {
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

func TestThreat24_ALineThatCannotBeWrittenIsToldLater(t *testing.T) {
	s := newSite(t, time.Now)
	tooLong := audit.Entry{Time: time.Now(), Outcome: audit.Unproved, Reference: strings.Repeat("x", audit.MaxLine)}
	for _, proved := range []bool{true, false} {
		if err := s.plugin.record(tooLong, proved); err == nil {
			t.Fatal("a line beyond every limit was written")
		}
	}
	if err := s.plugin.record(audit.Entry{Time: time.Now(), Outcome: audit.Trusted}, true); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.path("audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var last audit.Entry
	for line := range strings.Lines(string(data)) {
		last = audit.Entry{}
		if err := json.Unmarshal([]byte(line), &last); err != nil {
			t.Fatal(err)
		}
	}
	if last.Outcome != audit.Trusted || last.Omitted != 1 {
		t.Errorf("the next line is %+v, want it to tell of the one that proved nothing", last)
	}
}
