package script

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestQuantilesAreOfTheMeasuredValues(t *testing.T) {
	values := []float64{}
	for i := 20; i >= 1; i-- {
		values = append(values, float64(i))
	}
	for q, want := range map[float64]float64{0.5: 10, 0.99: 20, 1: 20, 0.05: 1} {
		if got := Quantile(values, q); got != want {
			t.Errorf("quantile %g of 1 to 20: %g, want %g", q, got, want)
		}
	}
	if got := Quantile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
}

func TestAnExpectationThatDoesNotComeTrueFailsTheScenario(t *testing.T) {
	dir := t.TempDir()
	s := New(io.Discard, "x", "nothing")
	s.Expect(true, "good", "")
	s.Expect(false, "bad", "because of %s", "this")
	s.Measure("time", 1500*time.Microsecond)
	if err := s.Close(dir, nil); err == nil || !strings.Contains(err.Error(), "bad: because of this") || strings.Contains(err.Error(), "good") {
		t.Errorf("the error does not name what failed, and that alone: %v", err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "x.json"))
	if err != nil {
		t.Fatal(err)
	}
	var read Script
	if err := json.Unmarshal(content, &read); err != nil {
		t.Fatal(err)
	}
	if read.OK || len(read.Events) != 2 || read.Events[1].Detail != "because of this" || read.Measures["time"][0] != 1.5 {
		t.Errorf("wrote %s", content)
	}
}
