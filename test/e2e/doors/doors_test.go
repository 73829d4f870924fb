package doors

import (
	"io"
	"testing"
	"time"

	"github.com/keelson-project/keelson/test/e2e/script"
	"github.com/keelson-project/keelson/test/e2e/stage"
	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// door was tried once a second: "+" succeeded, "-" did not.
func door(outcomes string, allowed bool) *Door {
	d := L4(stage.Mirror, "10.0.0.1:9000", "somebody", allowed)
	for i, o := range outcomes {
		d.tries = append(d.tries, said.Try{Begun: int64(i) * int64(time.Second), OK: o == '+'})
	}
	return d
}

func TestDoorsAreJudged(t *testing.T) {
	for name, c := range map[string]struct {
		outcomes string
		allowed  bool
		want     bool
	}{
		"forbidden, and never opened":     {"-----", false, true},
		"forbidden, and opened once":      {"--+--", false, false},
		"forbidden, and never tried":      {"", false, false},
		"allowed, and open":               {"+++++", true, true},
		"allowed, and shut for three":     {"+---+", true, true},
		"allowed, and shut for four":      {"+----+", true, false},
		"allowed, and shut until the end": {"+-----", true, false},
		"allowed, and never open":         {"---", true, false},
		"allowed, and never tried":        {"", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			record := script.New(io.Discard, "x", "")
			door(c.outcomes, c.allowed).Judge(record, 3*time.Second)
			if got := record.Events[0].OK; got != c.want {
				t.Errorf("%+v", record.Events)
			}
		})
	}
}
