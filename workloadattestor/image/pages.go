package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxPages bounds the pages of one list of referrers.
const maxPages = 16

// page is one page of a list of referrers, which is an index.
type page struct {
	Manifests []json.RawMessage `json:"manifests"`
}

// whole follows the pages of a list of referrers (OCI distribution spec 1.1, "Listing Referrers": a Link with rel="next"), and makes
// one answer of them. go-containerregistry reads the first page alone. Of a list with more pages than are read, it has those, and notes it
// for watchCut.
func whole(first *http.Response, ask func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	if first.StatusCode != http.StatusOK || next(first) == "" {
		return first, nil
	}
	var all []json.RawMessage
	left, response := int64(maxDocument), first
	for n := 1; ; n++ {
		raw, err := io.ReadAll(io.LimitReader(response.Body, left+1))
		if err := errors.Join(err, response.Body.Close()); err != nil {
			return nil, err
		}
		if left -= int64(len(raw)); left < 0 {
			return nil, fmt.Errorf("image: list of referrers is larger than %d bytes", maxDocument)
		}
		var p page
		if _, err := decodeStrict(raw, &p); err != nil {
			return nil, fmt.Errorf("image: list of referrers: %w", err)
		}
		all = append(all, p.Manifests...)
		link := next(response)
		if link == "" {
			break
		}
		if n == maxPages || len(all) > maxChildren {
			noteCut(first.Request.Context())
			break
		}
		if response, err = follow(first.Request, link, ask); err != nil {
			return nil, err
		}
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": types.OCIImageIndex, "manifests": all[:min(len(all), maxChildren)]})
	if err != nil {
		return nil, fmt.Errorf("image: list of referrers: %w", err)
	}
	first.Body, first.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
	first.Header.Del("Content-Length")
	first.Header.Del("Link")
	return first, nil
}

// cut is the key of a context's note that a list of referrers was longer than is read.
type cut struct{}

// watchCut is a context with such a note. wasCut reads it.
func watchCut(ctx context.Context) (_ context.Context, wasCut func() bool) {
	note := new(atomic.Bool)
	return context.WithValue(ctx, cut{}, note), note.Load
}

func noteCut(ctx context.Context) {
	if note, ok := ctx.Value(cut{}).(*atomic.Bool); ok {
		note.Store(true)
	}
}

// follow asks for the next page of a list. A registry cannot send its client elsewhere with that.
func follow(of *http.Request, link string, ask func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	target, err := of.URL.Parse(link)
	if err != nil || target.Scheme != of.URL.Scheme || target.Host != of.URL.Host || target.Path != of.URL.Path {
		return nil, fmt.Errorf("image: the next page of a list of referrers is %s, want one of %s", short(link), of.URL.Path)
	}
	request := of.Clone(of.Context())
	request.URL = &url.URL{Scheme: target.Scheme, Host: target.Host, Path: target.Path, RawPath: target.RawPath, RawQuery: target.RawQuery}
	response, err := ask(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("image: the next page of a list of referrers: %s", response.Status), response.Body.Close())
	}
	return response, nil
}

// next is the target of an answer's Link with rel="next" (RFC 8288), "" where there is none.
func next(response *http.Response) string {
	for _, header := range response.Header.Values("Link") {
		for _, link := range strings.Split(header, ",") {
			target, parameters, _ := strings.Cut(strings.TrimSpace(link), ">")
			target, ok := strings.CutPrefix(target, "<")
			for _, parameter := range strings.Split(parameters, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(parameter), "=")
				if ok && strings.EqualFold(name, "rel") && strings.EqualFold(strings.Trim(value, `"`), "next") {
					return target
				}
			}
		}
	}
	return ""
}
