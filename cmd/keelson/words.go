package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson-project/keelson/policy-sync/desired"
)

// lines is a text for people in the making.
type lines struct{ b strings.Builder }

func (l *lines) add(format string, args ...any) { fmt.Fprintf(&l.b, format+"\n", args...) }

func (l *lines) list(start string, items []string) {
	for _, i := range items {
		l.add("%s%s", start, i)
	}
}

func (l *lines) fact(name, value string) {
	if value != "" {
		l.add("  %-21s %s", name, value)
	}
}

func (l *lines) write(out io.Writer) error {
	_, err := io.WriteString(out, l.b.String())
	return err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// describe says in words which way is open.
func describe(f desired.Flow) string {
	who := "attested pods of " + f.Namespace + "/" + f.ServiceAccount
	if f.ServiceAccount == "" {
		who = "attested pods in " + f.Namespace
	}
	if f.PolicyLabel != "" {
		who += " that bear " + f.PolicyLabel
	}
	if f.Selector != nil {
		who += " with labels " + metav1.FormatLabelSelector(f.Selector)
	}
	for _, key := range slices.Sorted(maps.Keys(f.Tags)) {
		who += fmt.Sprintf(" on nodes with %s in (%s)", key, strings.Join(f.Tags[key], ", "))
	}
	if len(f.Ports) > 0 {
		who += fmt.Sprintf(", TCP ports %v", f.Ports)
	}
	for _, h := range f.HTTP {
		who += fmt.Sprintf(", HTTP %v %v", h.Methods, h.Paths)
	}
	return who
}
