//! Hot files: what is written is read again, lies where it should, and nothing damaged is believed.

mod common;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{Random, bare, file_bytes};
use hypura_gguf::fuzz::fuzz_hot;
use hypura_gguf::hot::{
    HOT_BLOCKS, HotError, HotLayout, HotModel, HotWriteError, HotWriter, VerifyError, is_hot,
};
use hypura_gguf::{Array, GgmlType, Metadata, Model, Value, Writer, read_header, write_split};

const FINGERPRINT: [u8; 32] = [0xa5; 32];

/// A Mixture-of-Experts model: its layers have different experts, and none of the slices is a whole
/// number of pages.
fn experts() -> Writer {
    let mut writer = Writer::new(moe_metadata(), 32).expect("a valid alignment");
    for (name, ty, dims) in [
        ("token_embd.weight", GgmlType::Q8_0, &[256, 10][..]),
        ("blk.0.attn_q.weight", GgmlType::Q4_0, &[256, 64]),
        ("blk.0.ffn_down_exps.weight", GgmlType::Q4_0, &[96, 256, 3]),
        ("blk.0.ffn_gate_exps.weight", GgmlType::Q4_0, &[256, 96, 3]),
        ("blk.0.ffn_up_exps.weight", GgmlType::F32, &[256, 5, 3]),
        ("blk.0.ffn_up_exps.bias", GgmlType::F32, &[5, 3]),
        ("blk.1.ffn_gate_inp.weight", GgmlType::F32, &[256, 4]),
        ("blk.1.ffn_gate_up_exps.weight", GgmlType::Q4_K, &[256, 16, 4]),
        ("blk.1.ffn_down_exps.weight", GgmlType::Q8_0, &[128, 64, 4]),
        ("blk.2.ffn_up_exps.weight", GgmlType::F16, &[64, 8, 2]),
        ("output_norm.weight", GgmlType::F32, &[33]),
        ("output.weight", GgmlType::Q8_0, &[256, 10]),
    ] {
        writer.add_tensor(name, ty, dims).expect(name);
    }
    writer
}

fn moe_metadata() -> Metadata {
    let mut metadata = bare();
    metadata.insert("test.block_count", 2_u32); // layer 2 is beyond: multi-token prediction
    metadata.insert("test.expert_count", 4_u32);
    metadata.insert("last", vec![1.5_f32, 2.5]);
    metadata
}

/// A dense model with an alignment of its own.
fn dense() -> Writer {
    let mut metadata = bare();
    metadata.insert("general.alignment", 64_u32);
    metadata.insert("test.block_count", 2_u32);
    let mut writer = Writer::new(metadata, 64).expect("a valid alignment");
    for (name, ty, dims) in [
        ("output.weight", GgmlType::Q8_0, &[64, 10][..]),
        ("token_embd.weight", GgmlType::Q8_0, &[64, 10]),
        ("blk.1.ffn_up.weight", GgmlType::Q4_0, &[64, 200]),
        ("blk.0.attn_norm.weight", GgmlType::F32, &[64]),
        ("blk.0.ffn_up.weight", GgmlType::Q4_0, &[64, 200]),
        ("blk.0.attn_q.weight", GgmlType::Q4_0, &[64, 64]),
        ("blk.0.attn_q.bias", GgmlType::F32, &[64]),
        ("blk.0.attn_k_b.weight", GgmlType::F16, &[64, 4, 2]),
        ("rope_freqs.weight", GgmlType::F32, &[0]),
    ] {
        writer.add_tensor(name, ty, dims).expect(name);
    }
    writer
}

/// Data that tell where they belong.
fn random_data(writer: &Writer) -> impl FnMut(usize, &mut dyn Write) -> io::Result<()> {
    let sizes: Vec<u64> = writer.tensors().iter().map(|info| info.bytes).collect();
    move |index, sink| {
        let mut random = Random::new(index as u64 * 77 + 5);
        let bytes: Vec<u8> = (0..sizes[index]).map(|_| random.next().to_le_bytes()[0]).collect();
        sink.write_all(&bytes)
    }
}

fn source(folder: &Path, writer: &Writer) -> Model {
    let path = folder.join("source.gguf");
    let mut file = File::create(&path).expect("a new file");
    writer.write(&mut file, random_data(writer)).expect("written");
    Model::open(&path).expect("a sound model")
}

fn bytes_at(model: &Model, range: hypura_gguf::ByteRange) -> Vec<u8> {
    let file = File::open(&model.files[range.file].path).expect("the model's file");
    let mut bytes = vec![0; usize::try_from(range.len).expect("small")];
    file.read_exact_at(&mut bytes, range.offset).expect("within the file");
    bytes
}

/// In place of rearranging.
fn rearranged(bytes: Vec<u8>, layout: HotLayout) -> Vec<u8> {
    if layout.is_repacked() { bytes.iter().map(|byte| !byte).collect() } else { bytes }
}

fn q4_0_is_repacked(tensor: &hypura_gguf::Tensor, _slices: u64) -> HotLayout {
    match tensor.ty {
        GgmlType::Q4_0 => HotLayout::Repacked { fingerprint: FINGERPRINT },
        _ => HotLayout::Plain,
    }
}

fn write_hot(model: &Model, path: &Path, replace: bool) -> Result<(), HotWriteError> {
    let writer = HotWriter::new(model, q4_0_is_repacked)?;
    let pieces = writer.pieces().to_vec();
    let written = writer.write(path, model, replace, |index, sink| {
        let piece = pieces[index];
        // In two parts, as a caller with little memory would.
        let bytes = rearranged(bytes_at(model, piece.source), piece.layout);
        let (first, second) = bytes.split_at(bytes.len() / 3);
        sink.write_all(first)?;
        sink.write_all(second)
    })?;
    written.verify(|_, _| true).expect("it is what was written");
    Ok(written.publish()?)
}

/// Writes the hot file of a model and opens it.
fn hot_of(folder: &Path, model: &Model) -> (PathBuf, HotModel) {
    let path = folder.join("hot.gguf");
    write_hot(model, &path, false).expect("written");
    let opened = Model::open(&path).expect("a GGUF file");
    assert!(is_hot(&opened) && !is_hot(model));
    (path, HotModel::of(&opened).expect("a sound hot file"))
}

/// The view is the source, and each slice of each tensor has the source's bytes.
fn check_same(model: &Model, hot: &HotModel, hot_names: &[&str]) {
    let end = hot.view.files[0].len;
    assert_eq!(hot.view.metadata, model.metadata);
    assert_eq!(hot.view.tensors.len(), model.tensors.len());
    assert_eq!(hot.source_bytes, model.file_bytes());
    let mut seen = Vec::new();
    for (index, (tensor, before)) in hot.view.tensors.iter().zip(&model.tensors).enumerate() {
        let what = |t: &hypura_gguf::Tensor| {
            (t.name.clone(), t.ty, t.dims, t.n_dims, t.bytes, t.role, t.layer)
        };
        assert_eq!(what(tensor), what(before));
        let Some(place) = hot.place(index) else {
            assert_eq!(bytes_at(&hot.view, tensor.range()), bytes_at(model, before.range()));
            continue;
        };
        seen.push(tensor.name.as_str());
        assert_eq!(tensor.offset, end);
        assert_eq!(place.layout, q4_0_is_repacked(tensor, 0));
        assert_eq!(u64::from(place.n_slices), before.n_experts().unwrap_or(1));
        for slice in 0..place.n_slices {
            let range = place.slice(slice).expect("there is one");
            let source = before.expert_range(slice).unwrap_or(before.range());
            assert_eq!((range.offset % 4096, range.len), (0, source.len));
            assert!(range.offset + range.len.next_multiple_of(4096) <= end);
            let expected = rearranged(bytes_at(model, source), place.layout);
            assert_eq!(bytes_at(&hot.view, range), expected, "{} {slice}", tensor.name);
            let block = hot.groups()[place.group].block(slice).expect("it is in one");
            assert!(block.offset <= range.offset);
            assert!(range.offset + range.len <= block.offset + block.len);
        }
        assert_eq!(place.slice(place.n_slices), None);
    }
    assert_eq!(seen, hot_names);
    hot.verify(|_, _| true).expect("it is what was written");
}

#[test]
fn experts_lie_in_blocks() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &experts());
    let (_, hot) = hot_of(folder.path(), &model);
    let names = [
        "blk.0.attn_q.weight",
        "blk.0.ffn_down_exps.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_up_exps.weight",
        "blk.1.ffn_gate_up_exps.weight",
        "blk.1.ffn_down_exps.weight",
        "output.weight",
    ];
    check_same(&model, &hot, &names);
    assert_eq!(hot.source_name, "source.gguf");
    // Parts lie in the order of use, down last; behind the experts the matrices.
    let names_of = |group: usize| -> Vec<&str> {
        let tensors = hot.groups()[group].tensors.iter();
        tensors.map(|&index| hot.view.tensors[index].name.as_str()).collect()
    };
    assert_eq!(hot.groups().len(), 4);
    assert_eq!(names_of(0), [names[2], names[3], names[1]]);
    assert_eq!(names_of(1), [names[4], names[5]]);
    assert_eq!((names_of(2), names_of(3)), (vec![names[0]], vec![names[6]]));
    // 96 rows of 256 in Q4_0, 5 of F32, 256 rows of 96: 13,824, 5,120 and 13,824 bytes.
    assert_eq!(hot.groups()[0].stride, 16384 + 8192 + 16384);
    assert_eq!((hot.groups()[0].blocks, hot.groups()[1].blocks), (3, 4));
}

#[test]
fn matrices_of_a_dense_model_lie_one_by_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &dense());
    let (_, hot) = hot_of(folder.path(), &model);
    check_same(
        &model,
        &hot,
        &["output.weight", "blk.1.ffn_up.weight", "blk.0.ffn_up.weight", "blk.0.attn_q.weight"],
    );
    // In the file in the order of use.
    let order: Vec<usize> = hot.groups().iter().flat_map(|g| g.tensors.clone()).collect();
    assert_eq!(order, [5, 4, 2, 0]);
}

#[test]
fn a_split_set_becomes_one_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let writer = experts();
    let paths = write_split(&writer, &folder.path().join("s"), &[5, 0, 7], random_data(&writer));
    let model = Model::open(&paths.expect("written")[0]).expect("a sound set");
    let (_, hot) = hot_of(folder.path(), &model);
    assert_eq!(hot.view.files.len(), 1);
    assert_eq!(hot.groups().len(), 4);
    check_same(&model, &hot, &model_names(&hot));
}

fn model_names(hot: &HotModel) -> Vec<&str> {
    let tensors = hot.view.tensors.iter().enumerate();
    tensors.filter(|(i, _)| hot.place(*i).is_some()).map(|(_, t)| t.name.as_str()).collect()
}

#[test]
fn other_programs_see_a_model_without_these_tensors() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &dense());
    let (path, _) = hot_of(folder.path(), &model);
    let file = std::fs::read(path).expect("it was written");
    let header = read_header(file.as_slice(), file.len() as u64).expect("plain GGUF");
    let names: Vec<&str> = header.tensors.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "token_embd.weight",
            "blk.0.attn_norm.weight",
            "blk.0.attn_q.bias",
            "blk.0.attn_k_b.weight",
            "rope_freqs.weight",
            HOT_BLOCKS
        ]
    );
    let keys = |metadata: &Metadata| {
        metadata.iter().take(3).map(|(key, _)| key.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&header.metadata), keys(&model.metadata));
}

#[test]
fn the_same_model_gives_the_same_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &experts());
    let (path, _) = hot_of(folder.path(), &model);
    let first = std::fs::read(&path).expect("it was written");
    write_hot(&model, &path, true).expect("written again");
    assert_eq!(std::fs::read(&path).expect("it was written"), first);
    let planned = HotWriter::new(&model, q4_0_is_repacked).expect("a plan").file_bytes();
    assert_eq!(planned, first.len() as u64);
}

#[test]
fn what_can_not_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &experts());
    let path = folder.path().join("hot.gguf");
    let writer = HotWriter::new(&model, q4_0_is_repacked).expect("a plan");
    let check = |message: &str, data: &dyn Fn(usize, &mut dyn Write) -> io::Result<()>| {
        let failed = writer.clone().write(&path, &model, false, data);
        let text = failed.expect_err(message).to_string();
        assert!(text.contains(message), "{text:?} does not say {message:?}");
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    };
    let whole = writer.pieces()[0].source.len;
    check("takes 2720 bytes here, but 0 were", &|_, _| Ok(()));
    check("but 2721 were", &|_, sink| {
        sink.write_all(&vec![0; usize::try_from(whole).unwrap() + 1])
    });
    check("tensor \"token_embd.weight\": stopped", &|_, _| Err(io::Error::other("stopped")));

    let unpublished = writer.clone().write(&path, &model, false, |index, sink| {
        sink.write_all(&bytes_at(&model, writer.pieces()[index].source))
    });
    drop(unpublished.expect("written"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);

    let norms = |names: &[&str]| {
        let mut writer = Writer::new(bare(), 32).expect("a valid alignment");
        for name in names {
            writer.add_tensor(name, GgmlType::F32, &[8]).expect("a new name");
        }
        Model::from_writer(&writer, Path::new("x"))
    };
    let refused = HotWriter::new(&norms(&["output_norm.weight"]), q4_0_is_repacked);
    assert!(matches!(refused, Err(HotWriteError::NothingHot)), "{refused:?}");
    let refused = HotWriter::new(&norms(&[HOT_BLOCKS]), q4_0_is_repacked);
    assert!(matches!(refused, Err(HotWriteError::AlreadyHot)), "{refused:?}");
    write_hot(&model, &path, false).expect("written");
    let opened = Model::open(&path).expect("a GGUF file");
    let again = write_hot(&opened, &folder.path().join("again.gguf"), false);
    assert!(matches!(again, Err(HotWriteError::AlreadyHot)), "{again:?}");
    assert!(matches!(HotModel::of(&model), Err(HotError::NotHot)));
}

#[test]
fn every_changed_byte_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &dense());
    let (path, hot) = hot_of(folder.path(), &model);
    let whole = std::fs::read(&path).expect("it was written");
    let data = usize::try_from(hot.view.files[0].data_offset).expect("small");
    let mut random = Random::new(11);
    let mut places: Vec<usize> = (0..150).map(|_| random.below(whole.len())).collect();
    places.extend([data - 1, data, whole.len() - 1]);
    places.extend((0..150).map(|_| random.below(data)));
    for at in places {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << random.below(8);
        std::fs::write(&path, &bytes).expect("a small file");
        let Ok(opened) = Model::open(&path) else { continue };
        let Ok(hot) = HotModel::of(&opened) else { continue };
        // Padding of the header is the one thing that means nothing.
        let damaged = hot.verify(|_, _| true);
        let is_padding = at < data && whole[at..data].iter().all(|&byte| byte == 0);
        assert!(is_padding || matches!(damaged, Err(VerifyError::Damaged { .. })), "byte {at}");
        assert!(is_padding == damaged.is_ok(), "byte {at} of {data}");
    }
    std::fs::write(&path, &whole).expect("a small file");
    let stopped = hot.verify(|_, _| false);
    assert!(matches!(stopped, Err(VerifyError::Stopped { .. })), "{stopped:?}");
}

/// The header of a hot file of `model`, changed by `change`.
fn changed(model: &Model, change: impl FnOnce(&mut Metadata)) -> Model {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hot.gguf");
    write_hot(model, &path, false).expect("written");
    let opened = Model::open(&path).expect("a GGUF file");
    let mut metadata = opened.metadata.clone();
    change(&mut metadata);
    let alignment = metadata.u32("general.alignment").unwrap_or(32);
    let mut writer = Writer::new(metadata, alignment).expect("metadata");
    for tensor in &opened.tensors {
        let n_dims = usize::try_from(tensor.n_dims).expect("few");
        writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims[..n_dims]).expect("a tensor");
    }
    Model::from_writer(&writer, &path)
}

#[test]
fn tables_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = source(folder.path(), &experts());
    let key = |name: &str| format!("hypura.hot.{name}");
    let check = |name: &str, value: Value, message: &str| {
        let changed = changed(&model, |metadata| {
            assert!(metadata.insert(key(name), value).is_some(), "{name}");
        });
        let text = HotModel::of(&changed).expect_err(name).to_string();
        assert!(text.contains(message), "{name}: {text:?} does not say {message:?}");
    };
    check("version", 2_u32.into(), "has version 2");
    check("source.name", 2_u32.into(), "source.name");
    check("tensor.name", vec![1_u32; 7].into(), "tensor.name");
    for name in ["type", "n_dims", "group", "index", "dims", "offset", "layout"] {
        let name = format!("tensor.{name}");
        check(&name, vec![0_u8; 7].into(), &name);
        check(&name, vec![0_u32; 4].into(), &name);
    }
    check("tensor.type", vec![4_u32; 7].into(), "tensor.type");
    check("tensor.dims", vec![u64::MAX; 28].into(), "place of");
    check("tensor.n_dims", vec![9_u32; 7].into(), "place of");
    check("tensor.n_dims", vec![1_u32; 7].into(), "place of");
    check("tensor.group", vec![0_u32; 7].into(), "place of");
    check("tensor.group", vec![7_u32; 7].into(), "place of");
    check("tensor.index", vec![1_u32, 2, 3, 4, 8, 7, 11].into(), "tensor.index");
    check("tensor.index", vec![1_u32, 2, 3, 4, 7, 8, 99].into(), "tensor.index");
    check("tensor.offset", vec![0_u64; 7].into(), "place of");
    check("tensor.offset", vec![1_u64; 7].into(), "place of");
    check("tensor.offset", vec![u64::MAX - 4095; 7].into(), "place of");
    check("group.offset", vec![0_u64; 4].into(), "group.offset");
    check("group.offset", vec![0_u64, 4095, 1 << 20, 1 << 21].into(), "group.offset");
    check("group.offset", vec![0_u64, 1 << 20, 1 << 21, u64::MAX - 4095].into(), "group.offset");
    check("group.stride", vec![0_u64; 4].into(), "group.offset");
    check("group.stride", vec![1_u64 << 62, 4096, 4096, 4096].into(), "group.offset");
    check("group.blocks", vec![3_u32].into(), "group.");
    check("group.blocks", vec![3_u32, 3, 1, 1].into(), "place of");
    check("group.blocks", vec![3_u32, 5, 1, 1].into(), "group.offset");
    check("group.checksum", vec![0_u8; 127].into(), "group.checksum");
    check("plain.checksum", vec![0_u8; 31].into(), "plain.checksum");
    check("header.checksum", vec![0_u8; 32].into(), "header is damaged");
    check("group.checksum", vec![0_u8; 128].into(), "header is damaged");
    let untouched = changed(&model, |_| {});
    HotModel::of(&untouched).expect("nothing was changed");
    let other = changed(&model, |metadata| {
        metadata.insert("general.alignment", 8192_u32);
    });
    assert!(HotModel::of(&other).is_err());
}

/// The file in `fixtures` was written by the first release with this version of the format: it must
/// be read for ever, and written the same as long as the version stays.
#[test]
fn version_1_is_what_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut writer = Writer::new(moe_metadata(), 32).expect("a valid alignment");
    for (name, ty, dims) in [
        ("token_embd.weight", GgmlType::F32, &[32, 2][..]),
        ("blk.0.ffn_up_exps.weight", GgmlType::Q4_0, &[32, 3, 2]),
    ] {
        writer.add_tensor(name, ty, dims).expect(name);
    }
    let model = source(folder.path(), &writer);
    let (path, _) = hot_of(folder.path(), &model);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hot-v1.gguf");
    let opened = Model::open(Path::new(fixture)).expect("a GGUF file");
    let hot = HotModel::of(&opened).expect("a sound hot file");
    check_same(&model, &hot, &["blk.0.ffn_up_exps.weight"]);
    let written = std::fs::read(path).expect("it was written");
    assert!(std::fs::read(fixture).expect("it is in the repository") == written);
}

/// Numbers that parsers get wrong.
const EDGES: [u64; 9] =
    [0, 1, 3, 4096, 8192, 0xffff_ffff, 1 << 32, i64::MAX as u64, u64::MAX - 4095];

/// Changes one number of one of our arrays.
fn mutate(random: &mut Random, metadata: &mut Metadata) {
    let ours: Vec<String> = metadata
        .iter()
        .filter(|(key, value)| key.starts_with("hypura.hot.") && value.as_array().is_some())
        .map(|(key, _)| key.to_owned())
        .collect();
    let key = &ours[random.below(ours.len())];
    let edge = EDGES[random.below(EDGES.len())];
    let Some(Value::Array(array)) = metadata.get(key).cloned() else { return };
    let value: Value = match array {
        Array::U32(mut v) => {
            let at = random.below(v.len());
            v[at] = if random.below(2) == 0 {
                u32::try_from(edge).unwrap_or(u32::MAX)
            } else {
                v[random.below(v.len())]
            };
            v.into()
        }
        Array::U64(mut v) => {
            let at = random.below(v.len());
            v[at] = match random.below(3) {
                0 => edge,
                1 => v[random.below(v.len())],
                _ => v[at].wrapping_add(4096).wrapping_sub(8192 * (edge & 1)),
            };
            v.into()
        }
        other => other.into(),
    };
    metadata.insert(key.clone(), value);
}

#[test]
fn mutated_tables_stay_within_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = Random::new(99);
    for writer in [experts(), dense()] {
        let model = source(folder.path(), &writer);
        let path = folder.path().join("hot.gguf");
        write_hot(&model, &path, true).expect("written");
        let bytes = std::fs::read(&path).expect("it was written");
        fuzz_hot(&bytes);
        let header = read_header(bytes.as_slice(), bytes.len() as u64).expect("sound");
        for _ in 0..1500 {
            let mut metadata = header.metadata.clone();
            for _ in 0..=random.below(2) {
                mutate(&mut random, &mut metadata);
            }
            let mut writer = Writer::new(metadata, 4096).expect("metadata");
            for info in &header.tensors {
                let n_dims = usize::try_from(info.n_dims).expect("few");
                writer.add_tensor(&info.name, info.ty, &info.dims[..n_dims]).expect("a tensor");
            }
            fuzz_hot(&file_bytes(&writer));
        }
        for _ in 0..1500 {
            let mut bytes = bytes.clone();
            let at = random.below(usize::try_from(header.data_offset).expect("small"));
            bytes[at] = random.next().to_le_bytes()[0];
            fuzz_hot(&bytes);
        }
    }
}
