package reference

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/imasig"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
)

// MaxSetSize bounds a set's file in bytes: about 100000 measured files.
const MaxSetSize = 16 << 20

// Problems are all that is wrong with a set's file, in the order of its lines.
type Problems []error

// Error joins the problems, one per line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives errors.Is and errors.As the single problems.
func (p Problems) Unwrap() []error { return p }

// ParseSet reads a set from YAML or JSON, as Marshal writes it. Unknown and repeated keys, aliases, further
// documents and values of the wrong kind are errors; so is a set that pins nothing, or
// pins what runs late without what runs before it, for then the node could have measured
// anything. The error is Problems, all of them at once, each with its line.
func ParseSet(data []byte) (Set, error) {
	if len(data) > MaxSetSize {
		return Set{}, Problems{fmt.Errorf("reference: set has %d bytes, more than the %d allowed", len(data), MaxSetSize)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return Set{}, Problems{fmt.Errorf("reference: set: %w", err)}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Set{}, Problems{errors.New("reference: set: only one YAML document is allowed")}
	}
	p := &parser{}
	s := p.set(doc.Content[0])
	if len(p.found) == 0 {
		return s, nil
	}
	slices.SortStableFunc(p.found, func(a, b problem) int { return a.line - b.line })
	problems := make(Problems, len(p.found))
	for i := range p.found {
		problems[i] = p.found[i].err
	}
	return Set{}, problems
}

type parser struct{ found []problem }

type problem struct {
	line int
	err  error
}

func (p *parser) at(n *yaml.Node, format string, args ...any) {
	p.found = append(p.found, problem{n.Line, fmt.Errorf("reference: line %d: "+format, append([]any{n.Line}, args...)...)})
}

func (p *parser) set(n *yaml.Node) Set {
	var s Set
	hasBoot := false
	p.mapping(n, "the set", func(key string, v *yaml.Node) bool {
		switch key {
		case "name":
			if s.name = p.text(v, "name"); !namePattern.MatchString(s.name) {
				p.at(v, "name %.80q: use up to 63 lower-case letters, digits, '.', '_' and '-', a letter or digit at both ends", s.name)
			}
		case "notBefore":
			s.notBefore = p.time(v, key)
		case "notAfter":
			s.notAfter = p.time(v, key)
		case "conditions":
			s.conditions = p.conditions(v)
		case "payloadType":
			p.at(v, "this is a signed set: name who may sign it (reference_signers in the plugin, --signer in the command line), or give the set before it was signed")
		case "boot":
			hasBoot = true
			s.boot = p.boot(v)
		case "ima":
			s.ima = p.ima(v)
		default:
			return false
		}
		return true
	})
	if s.name == "" {
		p.at(n, "the set has no name")
	}
	if problem := s.unfounded(); hasBoot && len(p.found) == 0 && problem != "" {
		p.at(n, "%s", problem)
	}
	if !hasBoot {
		p.at(n, "the set has no boot values, so it would accept any machine")
	}
	if s.ima == nil && s.Reads("ima") {
		p.at(n, "a condition reads what IMA measured, but the set has no ima section, so that it looks at no measured file")
	}
	if !s.notAfter.IsZero() && !s.notBefore.Before(s.notAfter) {
		p.at(n, "notAfter is not after notBefore")
	}
	return s
}

func (p *parser) boot(n *yaml.Node) boot {
	b := boot{bank: nodeclaim.SHA256, values: values{}, pcrs: map[nodeclaim.HashAlg]map[int][][]byte{}}
	p.mapping(n, "boot", func(key string, v *yaml.Node) bool {
		switch c := componentOf(key); {
		case c != nil:
			b.values[key] = c.read(p, v, key)
		case key == "bank":
			b.bank = p.bank(v, p.text(v, key))
		case key == "pcrs":
			p.pcrs(v, b.pcrs)
		case key == unpinnedKernelKey:
			b.unpinnedKernel = true
			if text := p.text(v, key); text != allowUnpinned {
				p.at(v, "unpinnedKernel %.40q: use allow, or leave the key out", text)
			}
		default:
			return false
		}
		return true
	})
	if len(p.found) == 0 {
		p.bootComplete(n, b)
	}
	return b
}

// bootComplete demands what the components rest on, and that all digests are of the set's bank.
func (p *parser) bootComplete(n *yaml.Node, b boot) {
	for _, c := range components {
		if c.demands == nil {
			continue
		}
		for _, lacking := range c.demands(b) {
			p.at(n, "%s", lacking)
		}
	}
	for _, c := range components {
		for _, v := range b.values[c.key] {
			for _, wrong := range v.foreign(b.bank) {
				p.at(n, "%s", wrong)
			}
		}
	}
}

func (p *parser) pcrs(n *yaml.Node, out map[nodeclaim.HashAlg]map[int][][]byte) {
	p.mapping(n, "pcrs", func(name string, values *yaml.Node) bool {
		alg, err := nodeclaim.ParseHashAlg(name)
		if err != nil {
			p.at(values, "pcrs: %v", err)
			return true
		}
		out[alg] = map[int][][]byte{}
		p.mapping(values, "pcrs of "+name, func(key string, v *yaml.Node) bool {
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i > nodeclaim.MaxPCR || strconv.Itoa(i) != key {
				return false
			}
			out[alg][i] = alternatives(p, v, "PCR "+key, false, func(item *yaml.Node) []byte { return p.hex(item, alg.Size()) })
			if i == ima.PCR {
				p.at(v, "PCR 10 follows every measured file and cannot be pinned; use the ima section")
			}
			return true
		})
		return true
	})
}

func (p *parser) ima(n *yaml.Node) *imaPolicy {
	out := &imaPolicy{files: map[string][]string{}}
	p.mapping(n, "ima", func(key string, v *yaml.Node) bool {
		switch key {
		case "files":
			p.mapping(v, "files", func(file string, digests *yaml.Node) bool {
				out.files[file] = nil // an empty list forbids the file, also in an ignored directory
				p.sequence(digests, "digests of "+file, func(item *yaml.Node) {
					out.files[file] = append(out.files[file], p.imaDigest(item))
				})
				return true
			})
		case "ignoreDirectories":
			p.sequence(v, key, func(item *yaml.Node) { out.ignore = append(out.ignore, p.directory(item)) })
		case "ignoreFiles":
			p.sequence(v, key, func(item *yaml.Node) { out.ignoreFiles = append(out.ignoreFiles, p.ignoredFile(item)) })
		case "required":
			p.sequence(v, key, func(item *yaml.Node) {
				if file := p.text(item, key); !slices.Contains(out.required, file) {
					out.required = append(out.required, file)
				}
			})
		case "signatureKeys":
			p.sequence(v, key, func(item *yaml.Node) { out.keys = p.signatureKey(item, out.keys) })
		case "violations":
			out.allowViolations = p.text(v, key) == "allow"
			if v.Value != "allow" && v.Value != "deny" {
				p.at(v, "violations %.40q: use deny or allow", v.Value)
			}
		case bareNamesKey:
			out.allowBareNames = p.text(v, key) == "allow"
			if v.Value != "allow" && v.Value != "deny" {
				p.at(v, "%s %.40q: use deny or allow", key, v.Value)
			}
		default:
			return false
		}
		return true
	})
	for _, file := range out.required {
		if len(out.files[file]) == 0 {
			p.at(n, "required %.200q has no digest under files, so anything of that name would do", file)
		}
	}
	out.book, out.vouched = newBook(out), newVouched()
	return out
}

// bareNamesKey says what becomes of files that the kernel names without a directory.
const bareNamesKey = "bareNames"

// maxSignatureKeys bounds how many keys one signature may have to be tried with.
const maxSignatureKeys = 64

func (p *parser) signatureKey(n *yaml.Node, keys []imasig.Key) []imasig.Key {
	k, err := imasig.ParseKey([]byte(p.text(n, "signature key")))
	switch {
	case err != nil:
		p.at(n, "signature key: %v", err)
	case slices.ContainsFunc(keys, func(o imasig.Key) bool { return o.ID() == k.ID() }):
		p.at(n, "signature key %s is listed twice", k.ID())
	case len(keys) == maxSignatureKeys:
		p.at(n, "more than the %d signature keys allowed", maxSignatureKeys)
	default:
		return append(keys, k)
	}
	return keys
}

// directory is an absolute, clean path, given with or without its final slash. The root is
// refused: ignoring it would switch the check off without saying so.
func (p *parser) directory(n *yaml.Node) string {
	dir := p.text(n, "directory")
	clean := path.Clean(dir)
	if !strings.HasPrefix(dir, "/") || clean == "/" || strings.TrimSuffix(dir, "/") != clean {
		p.at(n, "directory %.200q is not an absolute, clean path below the root", dir)
	}
	return clean + "/"
}

// ignoredFile reads the path of a file that is not looked at.
func (p *parser) ignoredFile(n *yaml.Node) string {
	file := p.text(n, "file")
	if !strings.HasPrefix(file, "/") || path.Clean(file) != file || file == "/" {
		p.at(n, "file %.200q is not an absolute, clean path", file)
	}
	return file
}

func (p *parser) imaDigest(n *yaml.Node) string {
	s := p.text(n, "digest")
	i := strings.LastIndexByte(s, ':')
	if _, err := hex.DecodeString(s[i+1:]); err != nil || i < 1 || s != strings.ToLower(s) || len(s)-i < 33 {
		p.at(n, "digest %.200q is not an algorithm, a colon and lower-case hex", s)
	}
	return s
}

func (p *parser) time(n *yaml.Node, what string) time.Time {
	t, err := time.Parse(time.RFC3339, p.text(n, what))
	if err != nil {
		p.at(n, "%s %.40q is not a time like 2026-10-31T00:00:00Z", what, n.Value)
	}
	return t
}
