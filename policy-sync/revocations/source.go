package revocations

import (
	"context"
	"errors"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// source lists and watches one resource and notes whether the API answers.
type source[L runtime.Object] struct {
	list   func(context.Context, metav1.ListOptions) (L, error)
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	fields string
	note   func(error)
}

func (s *source[L]) listWatch() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = s.fields
			list, err := s.list(ctx, o)
			s.noteUnlessOver(ctx, err)
			if err != nil {
				return nil, err
			}
			return list, nil
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = s.fields
			w, err := s.watch(ctx, o)
			if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) { // a server that streams no lists is asked for a plain one next
				s.noteUnlessOver(ctx, err)
			}
			return w, err
		},
	}
}

func (s *source[L]) noteUnlessOver(ctx context.Context, err error) {
	if ctx.Err() == nil {
		s.note(plain(err))
	}
}

// plain takes away the request's address, which differs from try to try.
func plain(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request.Err
	}
	return err
}

// mirror is a reflector's store that hands everything on.
type mirror struct {
	put, remove func(any)
	replace     func([]any)
}

// Add is called by the reflector.
func (m mirror) Add(o any) error { m.put(o); return nil }

// Update is called by the reflector.
func (m mirror) Update(o any) error { m.put(o); return nil }

// Delete is called by the reflector.
func (m mirror) Delete(o any) error { m.remove(o); return nil }

// Replace is called by the reflector.
func (m mirror) Replace(all []any, _ string) error { m.replace(all); return nil }

// Resync is called by the reflector.
func (m mirror) Resync() error { return nil }
