"""The public data sets that are known by name, as their owners describe them."""

from fedrec.data.layouts.layout import Layout
from fedrec.data.layouts.mind import impressions
from fedrec.data.layouts.movielens import movielens
from fedrec.data.reading import Reading

GROUPLENS = "https://files.grouplens.org/datasets"
RESEARCH = (
    "GroupLens: for research, with a citation; not to be redistributed, nor used commercially, without permission"
)


def _movielens(name: str, about: str, md5: str = "") -> Layout:
    """Return the layout that MovieLens has had since 20M: ratings.csv and movies.csv, of half stars."""
    return Layout(
        about=about,
        files="ratings.csv",
        columns="user=userId,item=movieId,rating=rating,time=timestamp",
        reading=Reading(
            format="csv",
            delimiter="comma",
            scale="0.5..5",
            items="movies.csv",
            item_columns="key=movieId,title=title,category=genres",
        ),
        page="https://grouplens.org/datasets/movielens/",
        fetch=f"{name}.zip",
        url=f"{GROUPLENS}/movielens/{name}.zip",
        md5=md5,
        terms=RESEARCH,
    )


LAYOUTS: dict[str, Layout] = {
    "ml-100k": Layout(
        about="MovieLens 100K: 100,000 ratings of 1,682 films by 943 people",
        files="u.data",
        columns="",
        reading=Reading(items="u.item", users="u.user"),
        load=movielens,
        page="https://grouplens.org/datasets/movielens/100k/",
        fetch="ml-100k.zip",
        url=f"{GROUPLENS}/movielens/ml-100k.zip",
        md5="0e33842e24a9c977be4e0107933c0723",
        terms=RESEARCH,
        tried=True,
    ),
    "ml-1m": Layout(
        about="MovieLens 1M: a million ratings of 3,900 films by 6,040 people",
        files="ratings.dat",
        columns="user=1,item=2,rating=3,time=4",
        reading=Reading(
            format="csv",
            delimiter="::",
            header="no",
            quote="none",
            encoding="latin-1",
            scale="1..5",
            items="movies.dat",
            item_columns="key=1,title=2,category=3",
            users="users.dat",
            user_columns="key=1,gender=2,age=3,occupation=4,zip=5",
        ),
        page="https://grouplens.org/datasets/movielens/1m/",
        fetch="ml-1m.zip",
        url=f"{GROUPLENS}/movielens/ml-1m.zip",
        md5="c4d9eecfca2ab87c1945afe126590906",
        terms=RESEARCH,
    ),
    "ml-latest-small": _movielens("ml-latest-small", "MovieLens, the small one that changes: some 100,000 ratings"),
    "ml-20m": _movielens("ml-20m", "MovieLens 20M: 20 million ratings", "cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": _movielens("ml-25m", "MovieLens 25M: 25 million ratings", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-32m": _movielens("ml-32m", "MovieLens 32M: 32 million ratings", "d472be332d4daa821edc399621853b57"),
    "amazon-2023": Layout(
        about="Amazon Reviews 2023, ratings of the 5-core: each category that is in the folder is a platform",
        files="[A-Z]*.csv",
        columns="user=user_id,item=parent_asin,rating=rating,time=timestamp",
        reading=Reading(
            delimiter="comma",
            platforms="files",
            scale="1..5",
            items="meta_*.jsonl",
            item_columns="key=parent_asin,title=title,category=categories,brand=store",
        ),
        catalogue=False,
        page="https://amazon-reviews-2023.github.io/data_processing/5core.html",
        fetch="CATEGORY.csv.gz of the pure IDs of some categories, and if wanted their meta_CATEGORY.jsonl.gz,",
        terms="no licence is stated: see its page",
    ),
    "lastfm": Layout(
        about="Last.fm of HetRec 2011: the artists that 1,892 people listened to, without times",
        files="user_artists.dat",
        columns="user=userID,item=artistID",
        reading=Reading(
            format="csv",
            delimiter="tab",
            quote="none",
            items="artists.dat",
            item_columns="key=id,title=name",
        ),
        page="https://grouplens.org/datasets/hetrec-2011/",
        fetch="hetrec2011-lastfm-2k.zip",
        url=f"{GROUPLENS}/hetrec2011/hetrec2011-lastfm-2k.zip",
        terms="for non-commercial use",
    ),
    "yelp": Layout(
        about="Yelp Open Dataset: reviews of local businesses, with stars",
        files="yelp_academic_dataset_review.json",
        columns="user=user_id,item=business_id,rating=stars,time=date",
        reading=Reading(
            format="jsonl",
            scale="1..5",
            items="yelp_academic_dataset_business.json",
            item_columns="key=business_id,title=name,category=categories",
        ),
        parted=", ",
        page="https://business.yelp.com/data/resources/open-dataset/",
        fetch="the JSON files, after agreeing to its terms,",
        terms="Yelp's Dataset User Agreement: for academic and educational use",
    ),
    "taobao": Layout(
        about="User behaviour from Taobao: views, favourites, carts and purchases of a million people in nine days",
        files="UserBehavior.csv",
        columns="user=1,item=2,category=3,event=4,time=5",
        reading=Reading(
            format="csv",
            delimiter="comma",
            header="no",
            events="click=pv,fav,cart,buy;fav=fav;cart=cart;buy=buy",
        ),
        page="https://tianchi.aliyun.com/dataset/649",
        fetch="UserBehavior.csv.zip, with an account,",
        terms="Tianchi's: for research, see its page",
    ),
    "mind": Layout(
        about="Microsoft News (MIND, small or large): what was shown, and what of it was clicked",
        files="behaviors.tsv",
        columns="user=user,item=item,time=time,label=click",
        raw=impressions,
        reading=Reading(
            format="csv",
            delimiter="tab",
            header="no",
            quote="none",
            items="news.tsv",
            item_columns="key=1,category=2,title=4,description=5",
        ),
        page="https://msnews.github.io/",
        fetch="the training and validation sets, after agreeing to its terms,",
        terms="Microsoft Research License: for non-commercial research",
    ),
    "kuairec": Layout(
        about="KuaiRec 2.0, big matrix: the share of a short video that was watched; `like` is more than twice",
        files="big_matrix.csv",
        columns="user=user_id,item=video_id,rating=watch_ratio,time=timestamp",
        reading=Reading(
            format="csv",
            delimiter="comma",
            items="item_categories.csv",
            item_columns="key=video_id,category=feat",
            users="user_features.csv",
            user_columns="key=user_id,active=user_active_degree,registered=register_days_range",
        ),
        like=2.0,
        page="https://kuairec.com/",
        fetch="KuaiRec.zip",
        url="https://zenodo.org/records/18164998/files/KuaiRec.zip",
        md5="261550d472c48eff4990fb13c0e5bcf7",
        terms="CC BY-SA 4.0",
    ),
}
