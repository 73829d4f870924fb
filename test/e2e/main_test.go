package main

import (
	"strings"
	"testing"
)

func TestWhatTakesKeelsonAwayIsPlayedLast(t *testing.T) {
	for names, want := range map[string]string{
		"join lifecycle":      "",
		"lifecycle":           "",
		"lifecycle join":      "e2e: scenario lifecycle uninstalls Keelson: name it last",
		"lifecycle lifecycle": "e2e: scenario lifecycle uninstalls Keelson: name it last",
		"nothing":             `e2e: no scenario is named "nothing" (-list tells)`,
	} {
		o := options{names: strings.Fields(names)}
		_, err := o.choose()
		if got := ""; err != nil && err.Error() != want || err == nil && got != want {
			t.Errorf("%s: %v, want %q", names, err, want)
		}
	}
	all, err := (&options{}).choose()
	if err != nil || all[len(all)-1].name != last {
		t.Errorf("the last of all is %v: %v", all[len(all)-1].name, err)
	}
}
