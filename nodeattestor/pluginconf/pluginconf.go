// Package pluginconf reads the HCL configuration of a SPIRE plugin strictly: a key that
// nobody reads, or one that stands twice, is a problem with its line, and all problems
// are reported at once. A misspelt key in a security product must not mean its default.
package pluginconf

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/token"
)

// MaxSize bounds a configuration text in bytes.
const MaxSize = 1 << 20

// Problems collects what is wrong with a configuration. The zero value has none.
type Problems struct {
	list  []string
	lines map[string]int // dotted key -> line where it stands
}

// Add notes a problem of the dotted key ("verdict.valid_for"), with its line when the
// text has that key.
func (p *Problems) Add(key, format string, args ...any) {
	where := key
	if line, ok := p.lines[key]; ok {
		where = fmt.Sprintf("line %d: %s", line, key)
	}
	p.list = append(p.list, where+": "+fmt.Sprintf(format, args...))
}

// Has reports whether the configuration text has the dotted key.
func (p *Problems) Has(key string) bool { _, ok := p.lines[key]; return ok }

// List is every problem, in the order in which they were found.
func (p *Problems) List() []string { return p.list }

// Err joins all problems into one error, one a line; nil when there are none.
func (p *Problems) Err() error {
	if len(p.list) == 0 {
		return nil
	}
	return errors.New(strings.Join(p.list, "\n"))
}

// Decode reads HCL into out, a pointer to a struct with `hcl:"name"` tags on strings,
// bools, ints, lists of them, structs (blocks) and maps (labelled blocks or objects).
// A text with an unknown or repeated key is not decoded at all. It returns the problems found so far; the caller adds its own while it validates.
func Decode(text string, out any) *Problems {
	p := &Problems{lines: map[string]int{}}
	if len(text) > MaxSize {
		p.Add("configuration", "%d bytes, more than the limit of %d", len(text), MaxSize)
		return p
	}
	p.decode(text, out)
	return p
}

// decode parses text and, where no key is in doubt, fills out. The library panics on
// some malformed texts instead of refusing them, so a panic is a problem of the text.
func (p *Problems) decode(text string, out any) {
	defer func() {
		if r := recover(); r != nil {
			p.Add("configuration", "not well-formed HCL: %v", r)
		}
	}()
	file, err := hcl.Parse(text)
	if err != nil {
		p.Add("configuration", "not HCL: %v", err)
		return
	}
	root, ok := file.Node.(*ast.ObjectList)
	if !ok {
		p.Add("configuration", "not a list of keys")
		return
	}
	if p.walk("", root, reflect.TypeOf(out).Elem()); p.Err() != nil {
		return
	}
	if err := hcl.DecodeObject(out, file); err != nil {
		p.Add("configuration", "%v", err)
	}
}

// walk compares the keys of a block with the fields of the struct that it fills.
func (p *Problems) walk(prefix string, list *ast.ObjectList, t reflect.Type) {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("hcl"), ",")
		fields[name] = t.Field(i).Type
	}
	for _, item := range list.Items {
		name := keyOf(item.Keys[0])
		key := prefix + name
		line := item.Pos().Line
		field, known := fields[name]
		if !known {
			p.list = append(p.list, fmt.Sprintf("line %d: %s: unknown key", line, key))
			continue
		}
		labelled := len(item.Keys) > 1
		if first, twice := p.lines[key]; twice && !labelled {
			p.list = append(p.list, fmt.Sprintf("line %d: %s: stands in line %d already", line, key, first))
		}
		p.lines[key] = line
		p.value(key, item, field)
	}
}

// value goes on into blocks: structs by their fields, maps of structs by their labels.
func (p *Problems) value(key string, item *ast.ObjectItem, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	object, ok := item.Val.(*ast.ObjectType)
	if !ok {
		return
	}
	switch {
	case t.Kind() == reflect.Struct && len(item.Keys) == 1:
		p.walk(key+".", object.List, t)
	case t.Kind() == reflect.Map && len(item.Keys) == 2:
		p.entry(key+"."+keyOf(item.Keys[1]), item.Pos().Line, item.Val, t.Elem())
	case t.Kind() == reflect.Map && len(item.Keys) == 1:
		for _, e := range object.List.Items {
			p.entry(key+"."+keyOf(e.Keys[0]), e.Pos().Line, e.Val, t.Elem())
		}
	default:
		p.Add(key, "is not written as a block with %d labels", len(item.Keys)-1)
	}
}

func (p *Problems) entry(key string, line int, val ast.Node, t reflect.Type) {
	if first, twice := p.lines[key]; twice {
		p.list = append(p.list, fmt.Sprintf("line %d: %s: stands in line %d already", line, key, first))
	}
	p.lines[key] = line
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if object, ok := val.(*ast.ObjectType); ok && t.Kind() == reflect.Struct {
		p.walk(key+".", object.List, t)
	}
}

func keyOf(k *ast.ObjectKey) string {
	if k.Token.Type == token.STRING {
		if s, ok := k.Token.Value().(string); ok {
			return s
		}
	}
	return k.Token.Text
}
