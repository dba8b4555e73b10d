package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

type imageAnswer struct{ Body api.Image }

func (s *Server) imageRoutes(doc huma.API) {
	tags := []string{"images"}
	register(s, doc, needs{read, everybody, looks}, huma.Operation{OperationID: "list-images", Method: http.MethodGet, Path: "/images", Tags: tags, Summary: "List boot images", Description: "Each with who would netboot it; and what machines would netboot and is not here."}, s.listImages)
	register(s, doc, needs{read, everybody, looks}, huma.Operation{OperationID: "get-image", Method: http.MethodGet, Path: "/images/{version}/{schematic}/{arch}", Tags: tags,
		Summary: "Show a boot image"}, s.getImage, http.StatusNotFound)
	register(s, doc, needs{operate, rackWide, changes}, huma.Operation{OperationID: "put-image", Method: http.MethodPut, Path: "/images/{version}/{schematic}/{arch}", Tags: tags,
		Summary: "Add or replace a boot image", Description: "Its kernel and initramfs must have been uploaded. An image that is there with other content is replaced only if replace is true."},
		s.putImage, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, rackWide, changes}, huma.Operation{OperationID: "delete-image", Method: http.MethodDelete, Path: "/images/{version}/{schematic}/{arch}", Tags: tags,
		Summary: "Remove a boot image"}, s.deleteImage, http.StatusNotFound, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, rackWide, changes}, huma.Operation{OperationID: "put-blob", Method: http.MethodPut, Path: "/images/blobs/{sha256}", Tags: tags,
		Summary:     "Upload a boot file",
		Description: fmt.Sprintf("The raw bytes, at most %d. Refused unless they have the hash of the path.", s.cfg.MaxBlob),
		RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}}}, s.putBlob, http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage)
}

func (s *Server) listImages(ctx context.Context, _ *struct{}) (*struct{ Body api.Images }, error) {
	list, err := s.inv.Images(ctx)
	if err != nil {
		return nil, err
	}
	uses, err := s.imageUses(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.Images }{}
	out.Body.Items = make([]api.Image, 0, len(list))
	for i := range list {
		img := imageOf(&list[i], uses)
		out.Body.Items = append(out.Body.Items, img)
		delete(uses, img.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		if use := uses[id]; use.Machines > 0 && len(out.Body.Missing) < maxMissing {
			out.Body.Missing = append(out.Body.Missing, api.MissingImage{ID: id, Use: *use})
		}
	}
	return out, nil
}

const (
	maxUsers   = 10  // clusters, and machines, of an image that are named
	maxMissing = 100 // images that are not here
)

// imageUses is who would netboot each image, by its id, whether it is here or not. It looks
// at each machine once.
func (s *Server) imageUses(ctx context.Context) (map[string]*api.ImageUse, error) {
	uses := map[string]*api.ImageUse{}
	use := func(id string) *api.ImageUse {
		if uses[id] == nil {
			uses[id] = &api.ImageUse{}
		}
		return uses[id]
	}
	add := func(n *int, names *[]string, name string) {
		if *n++; len(*names) < maxUsers {
			*names = append(*names, name)
		}
	}
	clusters, err := s.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range clusters {
		for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
			u := use(inventory.ImageID(c.TalosVersion, c.Schematic, arch))
			add(&u.Clusters, &u.ClusterNames, c.Name)
		}
	}
	err = eachMachine(ctx, s.inv, "", func(v inventory.View) bool {
		if v.Wanted != "" {
			u := use(v.Wanted)
			add(&u.Machines, &u.MachineNames, v.Machine.Name)
		}
		return true
	})
	return uses, err
}

func (s *Server) getImage(ctx context.Context, in *ImagePath) (*imageAnswer, error) {
	list, err := s.inv.Images(ctx)
	if err != nil {
		return nil, err
	}
	id := in.image().ID()
	i := slices.IndexFunc(list, func(img inventory.Image) bool { return img.ID() == id })
	if i < 0 {
		return nil, fmt.Errorf("image %s: %w", id, inventory.ErrNotFound)
	}
	uses, err := s.imageUses(ctx)
	if err != nil {
		return nil, err
	}
	return &imageAnswer{imageOf(&list[i], uses)}, nil
}

func (s *Server) putImage(ctx context.Context, in *struct {
	ImagePath
	Replace bool `query:"replace" doc:"Replace an image of other content"`
	Body    api.ImageSpec
}) (*imageAnswer, error) {
	if err := s.talos.CheckVersion(in.Version); err != nil {
		return nil, under("path", err)
	}
	img := in.image()
	img.Kernel, img.Initramfs = inventory.Blob(in.Body.Kernel), inventory.Blob(in.Body.Initramfs)
	for _, more := range []struct {
		from *api.Blob
		to   *inventory.Blob
	}{{in.Body.UKI, &img.UKI}, {in.Body.Stub, &img.Stub}, {in.Body.Signed, &img.Signed}} {
		if more.from != nil {
			*more.to = inventory.Blob(*more.from)
		}
	}
	if in.Body.UKI != nil && in.Body.Stub != nil {
		return nil, badField("stub", "leave it out", "the image has a UKI, and a stub is for one that has none")
	}
	for _, f := range img.Files() {
		if f.Blob.SHA256 == "" {
			continue
		}
		ok, err := s.blobs.Has(ctx, f.Blob)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, badField(f.Name, "upload it to "+api.Prefix+"/images/blobs/"+f.Blob.SHA256, "no file of this hash and size (%d bytes) is here", f.Blob.Size)
		}
	}
	if err := errors.Join(s.blobs.CheckKernel(img.Kernel, img.Arch), s.blobs.CheckInitramfs(img.Initramfs), s.blobs.CheckUKI(img)); err != nil {
		return nil, err
	}
	if !in.Replace {
		if err := s.another(ctx, img); err != nil {
			return nil, err
		}
	}
	if err := s.inv.PutImage(ctx, img); err != nil {
		return nil, err
	}
	return s.getImage(ctx, &in.ImagePath)
}

// another refuses an image that is there with other content: machines of one
// version would boot two different things.
func (s *Server) another(ctx context.Context, img *inventory.Image) error {
	list, err := s.inv.Images(ctx)
	i := slices.IndexFunc(list, func(old inventory.Image) bool { return old.ID() == img.ID() })
	if err != nil || i < 0 {
		return err
	}
	var errs []error
	had := list[i].Files()
	for j, f := range img.Files() {
		old := had[j].Blob
		if old == f.Blob || old.SHA256 == "" { // one more file changes nothing of what is booted so far
			continue
		}
		problem := fmt.Sprintf("%s has the one with SHA-256 %s, and this one has %s", img.ID(), old.SHA256, f.Blob.SHA256)
		if f.Blob.SHA256 == "" {
			problem = fmt.Sprintf("%s has one, with SHA-256 %s, and would have none", img.ID(), old.SHA256)
		}
		errs = append(errs, &inventory.FieldError{Field: f.Name, Problem: problem, Fix: "if it is meant, --replace, or replace=true in the API", Err: inventory.ErrExists})
	}
	return errors.Join(errs...)
}

func (s *Server) deleteImage(ctx context.Context, in *ImagePath) (*struct{}, error) {
	return nil, s.inv.DeleteImage(ctx, in.image().ID())
}

// blobInput takes the body as a stream; huma would read it into memory.
type blobInput struct {
	SHA256 string `path:"sha256" pattern:"^[0-9a-f]{64}$" patternDescription:"64 lower-case hexadecimal digits"`
	length int64
	body   io.Reader
}

// Resolve implements huma.Resolver.
func (in *blobInput) Resolve(ctx huma.Context) []error {
	in.length = -1
	if n, err := strconv.ParseInt(strings.TrimSpace(ctx.Header("Content-Length")), 10, 64); err == nil {
		in.length = n
	}
	in.body = ctx.BodyReader()
	return nil
}

func (s *Server) putBlob(ctx context.Context, in *blobInput) (*struct{ Body api.Blob }, error) {
	if in.length > s.cfg.MaxBlob {
		return nil, huma.NewError(http.StatusRequestEntityTooLarge, fmt.Sprintf("%d bytes are more than the limit of %d", in.length, s.cfg.MaxBlob))
	}
	blob, err := s.blobs.Put(ctx, in.body, in.SHA256, s.cfg.MaxBlob)
	var field *inventory.FieldError
	if errors.As(err, &field) && field.Field == "sha256" {
		return nil, badField("path.sha256", field.Fix, "%s", field.Problem)
	}
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.Blob }{api.Blob(blob)}, nil
}
