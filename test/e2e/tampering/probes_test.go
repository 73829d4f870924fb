package tampering

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// tries makes one try a tenth of a second, the first at 0: "+" succeeded, "-" did not.
func tries(outcomes string) []said.Try {
	var all []said.Try
	for i, o := range outcomes {
		all = append(all, said.Try{Begun: int64(i) * int64(100*time.Millisecond), OK: o == '+'})
	}
	return all
}

func TestAClosingIsWhatStaysClosed(t *testing.T) {
	for name, c := range map[string]struct {
		outcomes string
		at       time.Duration
		stalls   int
		err      string
	}{
		"one change":                            {outcomes: "+++----------", at: 300 * time.Millisecond},
		"a stall, and then the change":          {outcomes: "++----+++----------", at: 900 * time.Millisecond, stalls: 4},
		"a stall of three seconds is no change": {outcomes: "++" + strings.Repeat("-", 30) + "++", err: "the last of 34 tries went as before"},
		"one try that succeeds undoes all":      {outcomes: "+----------+--", err: "it was seen to stay so for 100ms only"},
		"never open":                            {outcomes: "----------", err: "none of 10 tries saw things as they were before"},
		"no tries":                              {err: "none of 0 tries saw things as they were before"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := closed(tries(c.outcomes), true)
			if c.err != "" {
				if err == nil || err.Error() != c.err {
					t.Fatalf("%+v, %v, want %q", got, err, c.err)
				}
				return
			}
			if err != nil || got.at.UnixNano() != int64(c.at) || got.stalls != c.stalls {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestTriesAreJudgedInTheOrderOfTheirBeginnings(t *testing.T) {
	all := tries("+++----------")
	all[0], all[12] = all[12], all[0]
	if got, err := closed(all, true); err != nil || got.at.UnixNano() != int64(300*time.Millisecond) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWhatComesBeforeTheVerdictOrTooLateIsAFailure(t *testing.T) {
	verdict := time.Unix(1000, 0)
	for name, c := range map[string]struct {
		after    time.Duration
		ok       bool
		measured float64
	}{
		"soon":                           {50 * time.Millisecond, true, 50},
		"told of late":                   {-100 * time.Millisecond, true, 0},
		"before it":                      {-300 * time.Millisecond, false, 0},
		"a stall of 3 s that ended late": {-3 * time.Second, false, 0},
		"in time":                        {l4Bound - time.Millisecond, true, 4999},
		"too late":                       {l4Bound, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			record := script.New(io.Discard, "x", "")
			within(record, "it", verdict.Add(c.after), verdict, l4Bound, "")
			if got := record.Events[0].OK; got != c.ok {
				t.Errorf("%+v", record.Events)
			}
			if got := record.Measures["it"]; c.ok != (len(got) == 1) || c.ok && got[0] != c.measured {
				t.Errorf("measured %v", got)
			}
		})
	}
}

func TestGoalsAreToldAsMetOrMissed(t *testing.T) {
	if got := verdicts(500, []float64{100, 100, 600}); got != "met at p50 (100 ms), missed at p99 (600 ms)" {
		t.Error(got)
	}
	if got := verdicts(500, nil); got != "not measured" {
		t.Error(got)
	}
}
