package confined_test

import (
	"testing"

	"github.com/keelson-project/keelson/workloadattestor/confined"
)

func BenchmarkJudge(b *testing.B) {
	p := pod()
	for b.Loop() {
		if !confined.Judge(confined.Restricted, p, confined.Rules{}).Met() {
			b.Fatal("refused")
		}
	}
}
