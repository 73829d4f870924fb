package reference

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Merge makes one set of the captures of several golden nodes of one class: where components, PCRs or measured
// files differ, all that the nodes had are allowed; [Diff] tells what these are. Because every component and PCR
// is an alternative of its own, a machine may mix them, as far as its PCRs then still have a
// value of one of the nodes. What one node pins and another does not, a differing state of secure boot, and
// whatever an operator wrote (validity, conditions, directories, required files) being different are
// errors, all at once: these are not nodes of one class, keep their sets side by side.
func Merge(name string, sets ...Set) (Set, error) {
	if !namePattern.MatchString(name) {
		return Set{}, errName("merge", name)
	}
	if len(sets) < 2 {
		return Set{}, errors.New("reference: merge: give at least two sets")
	}
	m := &merger{first: sets[0], out: clone(sets[0])}
	m.out.name, m.out.signedBy = name, ""
	for _, s := range sets {
		if s.name == "" {
			return Set{}, errors.New("reference: merge: a set is empty; make sets with ParseSet or Capture")
		}
		m.add(s)
	}
	if len(m.errs) > 0 {
		return Set{}, errors.Join(m.errs...)
	}
	written, err := ParseSet(m.out.Marshal())
	if err != nil {
		return Set{}, fmt.Errorf("reference: merge: what comes out is no set: %w", err)
	}
	return written, nil
}

type merger struct {
	first, out Set
	errs       []error
}

// clone copies what add changes.
func clone(s Set) Set {
	s.boot.values = maps.Clone(s.boot.values)
	s.boot.pcrs = maps.Clone(s.boot.pcrs)
	for bank := range s.boot.pcrs {
		s.boot.pcrs[bank] = maps.Clone(s.boot.pcrs[bank])
	}
	if s.ima != nil {
		policy := *s.ima
		policy.files = maps.Clone(policy.files)
		s.ima = &policy
	}
	return s
}

func (m *merger) same(ok bool, s Set, what string) {
	if !ok {
		m.errs = append(m.errs, fmt.Errorf("reference: merge: sets %s and %s differ in %s: they are not of one class", m.first.name, s.name, what))
	}
}

func (m *merger) add(s Set) {
	m.same(s.notBefore.Equal(m.first.notBefore) && s.notAfter.Equal(m.first.notAfter), s, "their validity")
	m.same(slices.Equal(strs(s.conditions), strs(m.first.conditions)), s, "their conditions")
	m.same(s.boot.bank == m.first.boot.bank, s, "the bank")
	m.boot(s)
	m.pcrs(s)
	if m.same((s.ima == nil) == (m.first.ima == nil), s, "whether measured files are looked at"); s.ima != nil && m.first.ima != nil {
		m.ima(s)
	}
}

func (m *merger) boot(s Set) {
	b, from := &m.out.boot, s.boot
	for _, c := range components {
		was, is := b.values[c.key], from.values[c.key]
		if c.class != nil {
			m.same(slices.Equal(distinct(was, c.class), distinct(is, c.class)), s, c.classIs)
		}
		if all := merged(m, s, c.ofClass, was, is, func(x, y value) bool { return x.String() == y.String() }); len(all) > 0 {
			b.values[c.key] = all
		}
	}
	m.same(b.unpinnedKernel == from.unpinnedKernel, s, "whether they say that any kernel passes")
}

func distinct[T any](list []T, of func(T) string) []string {
	var out []string
	for _, x := range list {
		out = append(out, of(x))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// merged has the alternatives of both; either both have some or none has.
func merged[T any](m *merger, s Set, what string, a, b []T, same func(T, T) bool) []T {
	m.same((len(a) == 0) == (len(b) == 0), s, "whether "+what+" is looked at")
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.ContainsFunc(out, func(y T) bool { return same(x, y) }) {
			out = append(out, x)
		}
	}
	return out
}

func (m *merger) pcrs(s Set) {
	for _, bank := range union(m.out.boot.pcrs, s.boot.pcrs) {
		for _, i := range union(m.out.boot.pcrs[bank], s.boot.pcrs[bank]) {
			a, b := m.out.boot.pcrs[bank][i], s.boot.pcrs[bank][i]
			all := merged(m, s, fmt.Sprintf("PCR %d (%s)", i, bank), a, b, bytes.Equal)
			if len(a) > 0 {
				m.out.boot.pcrs[bank][i] = all
			}
		}
	}
}

func (m *merger) ima(s Set) {
	p := m.out.ima
	m.same(slices.Equal(p.ignore, s.ima.ignore), s, "the directories that are not looked at")
	m.same(slices.Equal(p.ignoreFiles, s.ima.ignoreFiles), s, "the files that are not looked at")
	m.same(slices.Equal(p.required, s.ima.required), s, "the required files")
	m.same(slices.Equal(keyIDs(p), keyIDs(s.ima)), s, "the keys that may sign files")
	m.same(p.allowViolations == s.ima.allowViolations, s, "whether violations are allowed")
	m.same(p.allowBareNames == s.ima.allowBareNames, s, "whether files without a directory are allowed")
	for file, digests := range s.ima.files {
		p.files[file] = mergedDigests(p.files[file], digests)
	}
}

func mergedDigests(a, b []string) []string {
	return append(slices.Clone(a), without(b, a)...)
}
