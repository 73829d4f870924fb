package reference

import (
	"maps"
	"slices"

	"github.com/keelson-project/keelson/nodeattestor/ima"
)

// notRequired is what a set's book says of a file that is allowed and that is none of the required
// paths; it says of those which one they are.
const notRequired = -1

// newBook has the files of a policy.
func newBook(p *imaPolicy) *ima.Book {
	required := make(map[string]int32, len(p.required))
	for i, file := range p.required {
		required[file] = int32(i)
	}
	return ima.NewBook(func(yield func(path, digest string, value int32)) {
		for _, file := range slices.Sorted(maps.Keys(p.files)) {
			if ima.IsBootAggregate(ima.Entry{Path: file}) {
				continue // judged as such, whatever a set lists
			}
			at, ok := required[file]
			if !ok {
				at = notRequired
			}
			for _, d := range p.files[file] {
				yield(file, d, at)
			}
		}
	})
}
