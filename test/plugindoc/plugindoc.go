// Package plugindoc compares a plugin's document with its code, so that neither says what the other does not: the first
// column of a section's table is a list that a test also has from the code.
package plugindoc

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Keys lists the keys of a configuration struct by its `hcl` tags, dotted as in "tag.signers"; the label of a block is
// written <name>.
func Keys(config any) []string { return keys("", reflect.TypeOf(config)) }

func keys(prefix string, t reflect.Type) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
		field := t.Field(i).Type
		for field.Kind() == reflect.Pointer {
			field = field.Elem()
		}
		switch {
		case field.Kind() == reflect.Struct:
			out = append(out, keys(prefix+name+".", field)...)
		case field.Kind() == reflect.Map && field.Elem().Kind() == reflect.Struct:
			out = append(out, keys(prefix+name+".<name>.", field.Elem())...)
		default:
			out = append(out, prefix+name)
		}
	}
	return out
}

// Kinds cuts selectors after their kind, and leaves out repeats.
func Kinds(selectors []string) []string {
	var out []string
	for _, s := range selectors {
		kind, _, _ := strings.Cut(s, ":")
		out = append(out, kind)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Same asserts that a document names, in the first column of the table under a heading, what the code has, and
// nothing else. normal brings what the document writes to the form of the code's list; nil leaves it.
func Same(t testing.TB, document, heading string, code []string, normal func([]string) []string) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	written := column(string(text), heading)
	if len(written) == 0 {
		t.Fatalf("%s has no table under %q", document, heading)
	}
	if normal != nil {
		written = normal(written)
	}
	for _, name := range code {
		if !slices.Contains(written, name) {
			t.Errorf("%s, %q: %s is missing", document, heading, name)
		}
	}
	for i, name := range written {
		if !slices.Contains(code, name) {
			t.Errorf("%s, %q: %s is not in the code", document, heading, name)
		}
		if slices.Contains(written[:i], name) {
			t.Errorf("%s, %q: %s stands there twice", document, heading, name)
		}
	}
}

var quoted = regexp.MustCompile("`([^`]+)`")

// column is what stands in backticks in the first column of the tables between a heading and the next of its level.
func column(text, heading string) []string {
	_, rest, found := strings.Cut(text, "\n"+heading+"\n")
	if !found {
		return nil
	}
	level, _, _ := strings.Cut(heading, " ")
	section, _, _ := strings.Cut(rest, "\n"+level+" ")
	var out []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 || strings.TrimSpace(cells[0]) != "" {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			out = append(out, m[1])
		}
	}
	return out
}

// Sample is the first block of the document in a language, such as "hcl".
func Sample(t testing.TB, document, language string) string {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n```"+language+"\n")
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !closed {
		t.Fatalf("%s has no block of %s", document, language)
	}
	return block
}
