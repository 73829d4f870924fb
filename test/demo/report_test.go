package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// done makes a step that is over.
func done(err error, checks ...bool) *Step {
	s := &Step{ID: "x", Name: "a step", out: io.Discard}
	for _, ok := range checks {
		s.expect(ok, "an expectation", "%s", "detail")
	}
	s.finish(time.Now(), err)
	return s
}

func TestOnlyARunInWhichEverythingHeldIsOK(t *testing.T) {
	failure := errors.New("broken")
	for name, c := range map[string]struct {
		steps []*Step
		err   error
		want  bool
	}{
		"every step came to its end, every expectation held": {[]*Step{done(nil, true), done(nil, true, true)}, nil, true},
		"one expectation did not hold":                       {[]*Step{done(nil, true), done(nil, true, false)}, nil, false},
		"a step failed":                                      {[]*Step{done(nil, true), done(failure)}, failure, false},
		"a step is missing":                                  {[]*Step{done(nil, true)}, nil, false},
		"cleaning up failed":                                 {[]*Step{done(nil, true), done(nil, true)}, failure, false},
		"nothing ran":                                        {nil, failure, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := Report{Started: time.Now(), Steps: c.steps}
			r.close(c.err, 2)
			if r.OK != c.want {
				t.Errorf("ok is %t, want %t", r.OK, c.want)
			}
			var table bytes.Buffer
			r.table(&table)
			if said := strings.Contains(table.String(), "FAILED"); said == c.want {
				t.Errorf("the table says FAILED: %t, the report is ok: %t\n%s", said, c.want, table.String())
			}
		})
	}
}

func TestTheReportIsWrittenWithEveryStepsResultAndDuration(t *testing.T) {
	r := Report{Started: time.Now(), Steps: []*Step{done(nil, true), done(nil, false)}}
	r.close(nil, 2)
	path := filepath.Join(t.TempDir(), "out", "demo.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		OK    *bool
		Steps []struct {
			ID      string
			OK      *bool
			Seconds *float64
		}
	}
	if err := json.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	if got.OK == nil || *got.OK || len(got.Steps) != 2 {
		t.Fatalf("report: %s", content)
	}
	for i, s := range got.Steps {
		if s.ID == "" || s.OK == nil || *s.OK == (i == 1) || s.Seconds == nil {
			t.Errorf("step %d: %s", i, content)
		}
	}
	if err := r.failures(); err == nil || !strings.Contains(err.Error(), "an expectation") {
		t.Errorf("failures: %v, want the expectation's name", err)
	}
}

func TestTheJanitorTouchesOnlyWhatTheDemoMakes(t *testing.T) {
	victim := t.TempDir()
	for name, args := range map[string][]string{
		"another folder":    {victim, "klsn0000"},
		"another interface": {filepath.Join(victim, "klsn-1"), "eth0"},
		"no arguments":      {},
	} {
		t.Run(name, func(t *testing.T) {
			if code := janitor(args, strings.NewReader(""), io.Discard); code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			if _, err := os.Stat(victim); err != nil {
				t.Error(err)
			}
		})
	}
}
