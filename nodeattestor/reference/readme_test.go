package reference

import (
	"os"
	"strings"
	"testing"
)

func TestTheREADMEsSetIsOneAndNamesEveryFact(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```yaml\n")
	text, _, _ := strings.Cut(rest, "```")
	s, err := ParseSet([]byte(text))
	if err != nil || len(s.conditions) != 2 || len(s.Describe()) < 10 {
		t.Errorf("the README's set: %v, %q", err, s.Describe())
	}
	for _, f := range facts {
		if !strings.Contains(string(readme), "`"+f.name+"`") {
			t.Errorf("the README does not name the fact %s", f.name)
		}
	}
}
