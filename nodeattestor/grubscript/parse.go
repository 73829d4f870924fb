package grubscript

import (
	"fmt"
	"strings"
)

// Limits of a configuration; generated ones have some 20 kB.
const (
	MaxScript = 1 << 20 // bytes
	maxDepth  = 32      // of blocks, functions and conditions in one another
)

// refusal is an error of a line, from 1 on, of a configuration.
type refusal struct {
	line int
	why  string
}

// Error says the line and why.
func (r *refusal) Error() string { return fmt.Sprintf("line %d: %s", r.line, r.why) }

func refuse(line int, format string, args ...any) *refusal {
	return &refusal{line, fmt.Sprintf(format, args...)}
}

// part is a piece of a word: a text, or the name of a variable. A quoted one is not split.
type part struct {
	text             string
	variable, quoted bool
}

// word is an argument before expansion. glob tells whether it has unquoted wildcards.
type word struct {
	parts []part
	glob  bool
}

// plain is the word's text, if it has neither quotes nor variables.
func (w word) plain() string {
	if len(w.parts) == 1 && !w.parts[0].variable && !w.parts[0].quoted {
		return w.parts[0].text
	}
	return ""
}

// block is the last argument of a command, as it stands, with its braces.
type block struct {
	text string
	line int
}

// statement is a command, a condition or a function; one of the three.
type statement struct {
	line     int
	words    []word
	block    *block
	branches []branch
	function string // its body is block
}

// branch of a condition: the last one may have no test.
type branch struct {
	test, body []statement
	always     bool
}

// kinds of tokens.
type kind int

const (
	isWord kind = iota
	isBreak
	isOpen
	isClose
	isEnd
)

type token struct {
	kind       kind
	word       word
	line       int
	start, end int
}

type parser struct {
	text string
	at   int
	line int
	tok  token
}

// parse reads a list of statements that begins at a line.
func parse(text string, line int) ([]statement, error) {
	if len(text) > MaxScript {
		return nil, refuse(line, "the configuration has %d bytes, more than the %d allowed", len(text), MaxScript)
	}
	p := &parser{text: text, line: line}
	if err := p.next(); err != nil {
		return nil, err
	}
	list, err := p.statements(0)
	if err == nil && p.tok.kind != isEnd {
		err = refuse(p.tok.line, "%q ends nothing", p.text[p.tok.start:p.tok.end])
	}
	return list, err
}

// statements reads up to a word that ends a list, a brace or the end.
func (p *parser) statements(depth int) ([]statement, error) {
	if depth > maxDepth {
		return nil, refuse(p.tok.line, "more than %d conditions in one another", maxDepth)
	}
	var list []statement
	for {
		switch p.tok.kind {
		case isBreak:
			if err := p.next(); err != nil {
				return nil, err
			}
			continue
		case isEnd, isClose:
			return list, nil
		case isOpen:
			return nil, refuse(p.tok.line, "a block without a command is not interpreted")
		case isWord:
		}
		var s statement
		var err error
		switch name := p.tok.word.plain(); name {
		case "then", "elif", "else", "fi":
			return list, nil
		case "if":
			s, err = p.condition(depth)
		case "function":
			s, err = p.function()
		case "for", "while", "until", "case", "select", "time", "do", "done", "esac", "in", "[[", "]]", "!":
			return nil, refuse(p.tok.line, "%q is not interpreted", name)
		default:
			s, err = p.command()
		}
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
}

// command reads a command up to the end of its line, or with its block.
func (p *parser) command() (statement, error) {
	s := statement{line: p.tok.line}
	for p.tok.kind == isWord {
		s.words = append(s.words, p.tok.word)
		if err := p.next(); err != nil {
			return s, err
		}
	}
	if p.tok.kind != isOpen {
		return s, nil
	}
	var err error
	s.block, err = p.braces()
	return s, err
}

// braces reads a block as it stands. What is in it is looked at when it is run.
func (p *parser) braces() (*block, error) {
	start, line := p.tok.start, p.tok.line
	for depth := 0; ; {
		switch p.tok.kind {
		case isOpen:
			depth++
		case isClose:
			depth--
		case isEnd:
			return nil, refuse(line, "a block has no end")
		case isWord, isBreak:
		}
		end := p.tok.end
		if err := p.next(); err != nil {
			return nil, err
		}
		if depth == 0 {
			return &block{p.text[start:end], line}, nil
		}
	}
}

func (p *parser) function() (statement, error) {
	s := statement{line: p.tok.line}
	if err := p.next(); err != nil {
		return s, err
	}
	if s.function = p.tok.word.plain(); p.tok.kind != isWord || s.function == "" {
		return s, refuse(s.line, "a function has no name")
	}
	if err := p.next(); err != nil {
		return s, err
	}
	for p.tok.kind == isBreak {
		if err := p.next(); err != nil {
			return s, err
		}
	}
	if p.tok.kind != isOpen {
		return s, refuse(s.line, "function %s has no body", s.function)
	}
	var err error
	s.block, err = p.braces()
	return s, err
}

// condition reads from "if" to "fi".
func (p *parser) condition(depth int) (statement, error) {
	s := statement{line: p.tok.line}
	for word := "if"; word != "fi"; {
		if err := p.next(); err != nil {
			return s, err
		}
		b := branch{always: word == "else"}
		var err error
		if !b.always {
			if b.test, err = p.statements(depth + 1); err != nil {
				return s, err
			}
			if p.tok.word.plain() != "then" || len(b.test) == 0 {
				return s, refuse(s.line, "a condition has no test and \"then\"")
			}
			if err := p.next(); err != nil {
				return s, err
			}
		}
		if b.body, err = p.statements(depth + 1); err != nil {
			return s, err
		}
		s.branches = append(s.branches, b)
		word = p.tok.word.plain()
		if word != "fi" && (b.always || word != "elif" && word != "else") {
			return s, refuse(s.line, "a condition has no \"fi\"")
		}
	}
	return s, p.next()
}

// next reads a token.
func (p *parser) next() error {
	for p.at < len(p.text) {
		switch c := p.text[p.at]; {
		case c == ' ' || c == '\t' || c == '\r':
			p.at++
		case c == '\\' && strings.HasPrefix(p.text[p.at:], "\\\n"):
			p.at += 2
			p.line++
		case c == '#':
			end := strings.IndexByte(p.text[p.at:], '\n')
			if end < 0 {
				end = len(p.text) - p.at
			}
			p.at += end
		default:
			return p.token(c)
		}
	}
	p.tok = token{kind: isEnd, line: p.line, start: p.at, end: p.at}
	return nil
}

func (p *parser) token(c byte) error {
	p.tok = token{line: p.line, start: p.at}
	switch c {
	case '\n', ';':
		p.tok.kind = isBreak
	case '{':
		p.tok.kind = isOpen
	case '}':
		p.tok.kind = isClose
	case '|', '&', '<', '>':
		return refuse(p.line, "%q is not interpreted", c)
	default:
		w, err := p.readWord()
		p.tok.word, p.tok.end = w, p.at
		return err
	}
	if c == '\n' {
		p.line++
	}
	p.at++
	p.tok.end = p.at
	return nil
}

// readWord reads a word with its quotes (grub-core/script/yylex.l).
func (p *parser) readWord() (word, error) {
	var w word
	var text strings.Builder
	flush := func(quoted, always bool) {
		if text.Len() > 0 || always {
			w.parts = append(w.parts, part{text: text.String(), quoted: quoted})
		}
		text.Reset()
	}
	for p.at < len(p.text) {
		c := p.text[p.at]
		switch {
		case strings.IndexByte(" \t\r\n;{}|&<>", c) >= 0:
			flush(false, false)
			return w, nil
		case c == '\'':
			flush(false, false)
			end := strings.IndexByte(p.text[p.at+1:], '\'')
			if end < 0 {
				return w, refuse(p.line, "a quote has no end")
			}
			text.WriteString(p.text[p.at+1 : p.at+1+end])
			p.line += strings.Count(text.String(), "\n")
			p.at += end + 2
			flush(true, true)
		case c == '"':
			flush(false, false)
			if err := p.double(&w); err != nil {
				return w, err
			}
		case c == '$':
			flush(false, false)
			if err := p.variable(&w, false); err != nil {
				return w, err
			}
		case c == '\\':
			if p.at+1 == len(p.text) {
				return w, refuse(p.line, "a backslash escapes nothing")
			}
			if p.text[p.at+1] == '\n' {
				p.line++
			} else {
				flush(false, false)
				text.WriteByte(p.text[p.at+1])
				flush(true, true)
			}
			p.at += 2
		default:
			w.glob = w.glob || c == '*' || c == '?'
			text.WriteByte(c)
			p.at++
		}
	}
	flush(false, false)
	return w, nil
}

// double reads what stands in double quotes.
func (p *parser) double(w *word) error {
	line := p.line
	var text strings.Builder
	w.parts = append(w.parts, part{quoted: true}) // an argument even if it is empty
	flush := func() {
		w.parts = append(w.parts, part{text: text.String(), quoted: true})
		text.Reset()
	}
	for p.at++; p.at < len(p.text); {
		switch c := p.text[p.at]; {
		case c == '"':
			p.at++
			flush()
			return nil
		case c == '$':
			flush()
			if err := p.variable(w, true); err != nil {
				return err
			}
		case c == '\\' && p.at+1 < len(p.text) && strings.IndexByte("$\"\\\n", p.text[p.at+1]) >= 0:
			if p.text[p.at+1] == '\n' {
				p.line++
			} else {
				text.WriteByte(p.text[p.at+1])
			}
			p.at += 2
		default:
			if c == '\n' {
				p.line++
			}
			text.WriteByte(c)
			p.at++
		}
	}
	return refuse(line, "a quote has no end")
}

// variable reads the name after a "$".
func (p *parser) variable(w *word, quoted bool) error {
	rest := p.text[p.at+1:]
	var name string
	size := 0
	if strings.HasPrefix(rest, "{") {
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return refuse(p.line, "${ has no end")
		}
		name, size = rest[1:end], end+1
	} else {
		for size < len(rest) && (letter(rest[size]) || size > 0 && digit(rest[size])) {
			size++
		}
		if size == 0 && rest != "" && (digit(rest[0]) || strings.IndexByte("?*@#", rest[0]) >= 0) {
			size = 1
		}
		name = rest[:size]
	}
	if !validName(name) {
		return refuse(p.line, "$ is followed by no variable that is interpreted")
	}
	w.parts = append(w.parts, part{text: name, variable: true, quoted: quoted})
	p.at += 1 + size
	return nil
}

func letter(c byte) bool { return c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

// validName tells whether a name is a variable's, a parameter's, or "?".
func validName(name string) bool {
	if len(name) == 1 && (digit(name[0]) || name == "?") {
		return true
	}
	for i := range len(name) {
		if !letter(name[i]) && (i == 0 || !digit(name[i])) {
			return false
		}
	}
	return name != ""
}
