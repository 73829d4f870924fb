package trustgraph

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
)

// Segments of a path that Istio reads as templates (istio, pkg/config/security/security.go: MatchOneTemplate, MatchAnyTemplate).
const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

// literalSegment is what Istio lets stand beside templates in one path (the same file: validLiteral, RFC 3986's pchar).
var literalSegment = regexp.MustCompile(`^[-\w.~%!$&'()+,;:@=]+$`)

// CheckPath says what keeps a path of a TrustPolicy from being one of an AuthorizationPolicy that istiod takes and that means what
// its author wrote. A path is whole ("/orders"), begins with what stands before a last * ("/orders/*"), or has segments of
// which {*} is any one and {**} any number ("/orders/{*}/items"). The error's text follows the path in a sentence.
func CheckPath(path string) error {
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("does not begin with /")
	case !utf8.ValidString(path):
		return errors.New("is not UTF-8")
	case utf8.RuneCountInString(path) > v1alpha1.MaxPath:
		return fmt.Errorf("has %d characters; at most %d are possible", utf8.RuneCountInString(path), v1alpha1.MaxPath)
	case strings.ContainsAny(path, "?#"):
		return errors.New("has a query or a fragment, which no path of a request has")
	case strings.ContainsFunc(path, func(r rune) bool { return r == ' ' || r <= unicode.MaxASCII && unicode.IsControl(r) }):
		return errors.New("has a space or control character, which no path of a request has")
	case strings.ContainsAny(path, "{}"):
		return checkTemplate(path)
	case strings.Contains(path[:len(path)-1], "*"):
		return errors.New("has * elsewhere than at its end, where Istio takes it for the letter; {*} is one segment within a path")
	}
	return nil
}

// checkTemplate is Istio's CheckValidPathTemplate for a path with braces, and refuses empty segments at the ends as well.
func checkTemplate(path string) error {
	rest := false
	for _, segment := range strings.Split(strings.TrimSuffix(path[1:], "/"), "/") {
		switch {
		case (segment == oneSegment || segment == anySegments) && rest:
			return fmt.Errorf("has %s after %s, which has to be the last", segment, anySegments)
		case segment == anySegments:
			rest = true
		case segment == oneSegment:
		case strings.ContainsAny(segment, "{}"):
			return fmt.Errorf("has braces that hold something else than * or **: %s is one segment, %s any number", oneSegment, anySegments)
		case !literalSegment.MatchString(segment):
			return errors.New("has a segment beside its braces that is empty or has letters that Istio does not take there, such as *")
		}
	}
	return nil
}
