package reference

import "strings"

// kernelArgs splits a command line into words as the kernel does (lib/cmdline.c, next_arg): at its white
// space, which the bytes 0x09 to 0x0d, 0x20 and 0xa0 are, but not within double quotes. The
// quotes around a word or around its value are taken off. "--" and what follows it are among the words.
func kernelArgs(line string) []string {
	out := []string{}
	for {
		for line != "" && isKernelSpace(line[0]) {
			line = line[1:]
		}
		if line == "" {
			return out
		}
		end, quoted := 0, false
		for ; end < len(line) && (quoted || !isKernelSpace(line[end])); end++ {
			if line[end] == '"' {
				quoted = !quoted
			}
		}
		out = append(out, unquote(line[:end]))
		line = line[end:]
	}
}

func isKernelSpace(b byte) bool { return b >= 0x09 && b <= 0x0d || b == 0x20 || b == 0xa0 }

// unquote takes the quotes off as next_arg does: one before the word, one before the value, and the
// last one of the word when there was any of these. An "=" at the word's begin starts no value.
func unquote(word string) string {
	bare := strings.TrimPrefix(word, `"`)
	if i := valueStart(bare); i > 0 && i < len(bare) && bare[i] == '"' {
		bare = bare[:i] + bare[i+1:]
	}
	if len(bare) == len(word) {
		return word
	}
	return strings.TrimSuffix(bare, `"`)
}

// valueStart is where the value of a word begins, 0 when it has none.
func valueStart(word string) int {
	if len(word) < 2 {
		return 0
	}
	if i := strings.IndexByte(word[1:], '='); i >= 0 {
		return i + 2
	}
	return 0
}

// kernelParams are the words before "--", which ends what the kernel takes for itself, by
// name: every value in order, "" for a word without one. '-' and '_' are the same to the kernel
// in a name (kernel/params.c, dash2underscore); names have '_' here.
func kernelParams(line string) map[string][]string {
	out := map[string][]string{}
	for _, word := range kernelArgs(line) {
		if word == "--" {
			break
		}
		name, value := word, ""
		if i := valueStart(word); i > 0 {
			name, value = word[:i-1], word[i:]
		}
		name = strings.ReplaceAll(name, "-", "_")
		out[name] = append(out[name], value)
	}
	return out
}
