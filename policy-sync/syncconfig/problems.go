package syncconfig

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// problems collects what is wrong with a file, by line.
type problems struct {
	root yaml.Node
	list []problem
}

type problem struct {
	line int // 0 when it is about no line
	text string
}

func (p *problems) add(line int, format string, args ...any) {
	p.list = append(p.list, problem{line, fmt.Sprintf(format, args...)})
}

// at adds a problem about the value at a path of keys and, in lists, decimal indexes. A key that is not in the file is
// reported at the nearest one above it.
func (p *problems) at(path, format string, args ...any) {
	p.add(line(&p.root, strings.Split(path, ".")), "%s: %s", path, fmt.Sprintf(format, args...))
}

func line(n *yaml.Node, path []string) int {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		return line(n.Content[0], path)
	}
	if len(path) == 0 {
		return n.Line
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == path[0] {
				return max(line(n.Content[i+1], path[1:]), n.Content[i].Line)
			}
		}
	}
	if i, err := strconv.Atoi(path[0]); err == nil && n.Kind == yaml.SequenceNode && i >= 0 && i < len(n.Content) {
		return line(n.Content[i], path[1:])
	}
	return n.Line
}

var goType = regexp.MustCompile(` not found in type syncconfig\.\w+`)

var atLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)

// decode takes the decoder's errors apart: it reports every unknown key and every value of a wrong type.
func (p *problems) decode(err error) {
	texts := []string{err.Error()}
	if several := (*yaml.TypeError)(nil); errors.As(err, &several) {
		texts = several.Errors
	}
	for _, text := range texts {
		n := 0
		if m := atLine.FindStringSubmatch(text); m != nil {
			n, _ = strconv.Atoi(m[1]) // digits by the expression
			text = m[2]
		}
		// The decoder names Go types; the key's name is what helps.
		text = goType.ReplaceAllString(text, ": no such key here")
		p.add(n, "%s", strings.TrimPrefix(text, "yaml: "))
	}
}

func (p *problems) err() error {
	slices.SortStableFunc(p.list, func(a, b problem) int { return cmp.Compare(a.line, b.line) })
	var all []error
	for _, one := range p.list {
		if one.line > 0 {
			all = append(all, fmt.Errorf("line %d: %s", one.line, one.text))
			continue
		}
		all = append(all, errors.New(one.text))
	}
	return errors.Join(all...)
}
