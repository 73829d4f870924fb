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

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
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
			p.at(v, "this is a signed set: name who may sign it (reference_signers in the plugin, --signer in the command line)")
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
	if hasBoot && len(p.found) == 0 && s.late() && len(s.boot.bootLoader) == 0 && s.boot.pcrs[s.boot.bank][4] == nil {
		p.at(n, "the set looks at kernel, initrd or command line, but boot pins neither bootLoader nor PCR 4 of bank %s: another kernel may have run and measured these afterwards", s.boot.bank)
	}
	if !hasBoot {
		p.at(n, "the set has no boot values, so it would accept any machine")
	}
	if !s.notAfter.IsZero() && !s.notBefore.Before(s.notAfter) {
		p.at(n, "notAfter is not after notBefore")
	}
	return s
}

func (p *parser) boot(n *yaml.Node) boot {
	b := boot{bank: nodeclaim.SHA256, pcrs: map[nodeclaim.HashAlg]map[int][][]byte{}}
	p.mapping(n, "boot", func(key string, v *yaml.Node) bool {
		switch key {
		case "bank":
			b.bank = p.bank(v, p.text(v, key))
		case "secureBoot":
			b.secureBoot = alternatives(p, v, key, false, p.secureBoot)
		case "firmware", "bootLoader":
			sequences := alternatives(p, v, key, true, func(item *yaml.Node) []eventlog.Digest { return p.digests(item, key) })
			if key == "firmware" {
				b.firmware = sequences
			} else {
				b.bootLoader = sequences
			}
		case "kernel":
			b.kernel = p.digests(v, key)
		case "initrd":
			b.initrd = p.digests(v, key)
		case "commandLine":
			b.commandLine = p.commandLines(v)
		case "pcrs":
			p.pcrs(v, b.pcrs)
		case unpinnedKernelKey:
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

// bootComplete demands what the rest of a measured boot rests on: who measured first, and
// what was started. Without these, everything later in the PCRs may be the node's invention.
func (p *parser) bootComplete(n *yaml.Node, b boot) {
	pinned := b.pcrs[b.bank]
	if len(b.firmware) == 0 && pinned[0] == nil {
		p.at(n, "boot pins neither firmware nor PCR 0 of bank %s: who measured the rest is unknown", b.bank)
	}
	if len(b.bootLoader) == 0 && pinned[4] == nil && pinned[7] == nil && len(b.secureBoot) == 0 {
		p.at(n, "boot pins neither bootLoader, secureBoot, PCR 4 nor PCR 7 of bank %s: anything may have been started", b.bank)
	}
	enforced := len(b.secureBoot) > 0 && !slices.ContainsFunc(b.secureBoot, func(s eventlog.SecureBoot) bool { return s.State != eventlog.SecureBootEnabled })
	if pinned[2] == nil && !enforced {
		p.at(n, "boot pins neither PCR 2 of bank %s nor secure boot as enabled: a driver that root installed (Driver####, option ROM) may have run before the boot loader and measured what it liked", b.bank)
	}
	if len(b.initrd) > 0 && len(b.commandLine) == 0 && pinned[9] == nil && pinned[4] == nil {
		p.at(n, "boot pins initrd, but neither commandLine nor PCR 4 or 9 of bank %s: \"initrd=\" on the command line loads another one, which is not measured", b.bank)
	}
	for _, d := range slices.Concat(slices.Concat(b.firmware...), slices.Concat(b.bootLoader...), b.kernel, b.initrd) {
		if !strings.HasPrefix(string(d), b.bank.String()+":") {
			p.at(n, "digest %s is not of bank %s", d, b.bank)
		}
	}
	for _, c := range b.commandLine {
		if c.digest != "" && !strings.HasPrefix(string(c.digest), b.bank.String()+":") {
			p.at(n, "command line digest %s is not of bank %s", c.digest, b.bank)
		}
	}
}

func (p *parser) secureBoot(n *yaml.Node) eventlog.SecureBoot {
	s := eventlog.SecureBoot{}
	keys := map[string]*eventlog.Digest{"pk": &s.PK, "kek": &s.KEK, "db": &s.DB, "dbx": &s.DBX}
	p.mapping(n, "secureBoot", func(key string, v *yaml.Node) bool {
		to, ok := keys[key]
		switch {
		case ok:
			*to = p.digest(v, key)
		case key == "state":
			s.State = eventlog.SecureBootState(p.text(v, key))
			if s.State != eventlog.SecureBootEnabled && s.State != eventlog.SecureBootDisabled {
				p.at(v, "state %.40q is neither enabled nor disabled", s.State)
			}
		case key == "authorities":
			s.Authorities = []eventlog.Authority{}
			p.sequence(v, key, func(item *yaml.Node) { s.Authorities = append(s.Authorities, p.authority(item)) })
		default:
			return false
		}
		return true
	})
	if s.State == "" {
		p.at(n, "secureBoot has no state; say enabled or disabled")
	}
	return s
}

func (p *parser) authority(n *yaml.Node) eventlog.Authority {
	var a eventlog.Authority
	p.mapping(n, "authority", func(key string, v *yaml.Node) bool {
		switch key {
		case "variable":
			a.Variable = p.text(v, key)
		case "digest":
			a.Digest = p.digest(v, key)
		default:
			return false
		}
		return true
	})
	if a.Digest == "" {
		p.at(n, "authority has no digest")
	}
	return a
}

func (p *parser) commandLines(n *yaml.Node) []commandLine {
	var out []commandLine
	p.sequence(n, "commandLine", func(item *yaml.Node) {
		var c commandLine
		p.mapping(item, "command line", func(key string, v *yaml.Node) bool {
			switch key {
			case "text":
				c.text = p.text(v, key)
			case "digest":
				c.digest = p.digest(v, key)
			default:
				return false
			}
			return true
		})
		if (c.text == "") == (c.digest == "") {
			p.at(item, "a command line has either a text or a digest")
		}
		if len(c.text) > eventlog.MaxCommandLine {
			p.at(item, "command line has %d bytes, more than the %d allowed", len(c.text), eventlog.MaxCommandLine)
		}
		out = append(out, c)
	})
	if n.Kind == yaml.SequenceNode && len(out) == 0 {
		p.at(n, "commandLine is an empty list; leave the key out where it is not to be looked at")
	}
	return out
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
			if i == 10 {
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
	out.index, out.vouched = newIMAIndex(out), newVouched()
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
